//! The page as a reader's browser gets it.

mod sample;

use mgsd_eval::report::{self, ReportData};

#[test]
fn the_page_asks_nothing_of_the_network() {
    let page = report::render(&sample::report());
    for scheme in ["http://", "https://", "src=\"//", "url(", "@import", "<link"] {
        assert!(!page.contains(scheme), "{scheme} stands in the page");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn a_picture_that_is_not_within_the_page_is_left_out() {
    let mut data = sample::report();
    data.gallery.truncate(1);
    data.gallery[0].picture = "file.png".into();
    assert!(!report::render(&data).contains("file.png"));
}

#[test]
fn what_a_model_answers_stays_text() {
    let page = report::render(&sample::report());
    assert!(!page.contains("<script>alert"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
}

#[test]
fn the_main_figures_need_no_script() {
    let page = report::render(&sample::report());
    let static_part = page.split("<script>").next().unwrap_or_default();
    assert!(static_part.contains("class=\"db-gap\""), "the gap chart");
    assert_eq!(static_part.matches("<svg viewBox").count(), 4, "the curves");
    assert!(static_part.contains("Whole answer"), "perception");
    assert!(static_part.contains("class=\"card\""), "boards");
}

#[test]
fn an_empty_report_is_still_a_page() {
    let page = report::render(&ReportData { title: "Nothing yet".into(), ..ReportData::default() });
    assert!(page.contains("<h1>Nothing yet</h1>") && page.ends_with("</html>"));
    assert!(!page.contains("<section"));
}

#[test]
fn a_report_survives_its_own_json() {
    let data = sample::report();
    let json = mgsd_eval::json::to_string(&data);
    let back: ReportData = serde_json::from_str(&json).expect("own JSON");
    assert_eq!(back, data);
}
