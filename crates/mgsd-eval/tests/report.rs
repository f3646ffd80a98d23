//! The page as a reader's browser gets it.

mod sample;

use std::collections::BTreeMap;
use std::sync::Arc;

use mgsd_data::prompts::Prompts;
use mgsd_eval::cases::{EvalCase, Modality};
use mgsd_eval::client::{Answer, Client, Request};
use mgsd_eval::plan;
use mgsd_eval::report::{self, ReportData};
use mgsd_eval::run::RunOptions;
use mgsd_tasks::{GenerateOptions, RenderOptions, Task, generate};

#[test]
fn the_page_asks_nothing_of_the_network() {
    let page = report::render(&sample::report()).expect("page");
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
    assert!(!report::render(&data).expect("page").contains("file.png"));
}

#[test]
fn what_a_model_answers_stays_text() {
    let page = report::render(&sample::report()).expect("page");
    assert!(!page.contains("<script>alert"));
    assert!(page.contains("\\u003cscript>alert(1)\\u003c/script>"));
}

#[test]
fn the_main_figures_need_no_script() {
    let page = report::render(&sample::report()).expect("page");
    let static_part = page.split("<script").next().unwrap_or_default();
    assert!(static_part.contains("class=\"db-gap\""), "the gap chart");
    assert_eq!(static_part.matches("<svg viewBox").count(), 4, "the curves");
    assert!(static_part.contains("Whole answer"), "perception");
    assert!(static_part.contains("id=\"strips\"") && static_part.contains("data:image/"), "boards stage by stage");
    assert!(static_part.contains("By length of the shortest plan"), "run by run");
}

#[test]
fn an_empty_report_is_still_a_page() {
    let page = report::render(&ReportData { title: "Nothing yet".into(), ..ReportData::default() }).expect("page");
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

/// Answers each board with its shortest plan, or with one step up.
struct Half(Vec<String>);

impl Client for Half {
    fn name(&self) -> String {
        "half".to_string()
    }

    fn answer(
        &mut self,
        requests: &[Request],
        on_answer: &mut dyn FnMut(usize, Answer) -> mgsd_eval::Result<()>,
    ) -> mgsd_eval::Result<()> {
        for index in 0..requests.len() {
            let plan = if index % 2 == 0 { self.0[index].as_str() } else { "U" };
            on_answer(index, Answer { text: format!("<answer>{plan}</answer>"), ..Answer::default() })?;
        }
        Ok(())
    }
}

/// The data that the page's script reads.
fn explorer_data(page: &str) -> serde_json::Value {
    let (_, rest) = page.split_once("id=\"explorer-data\">").expect("data");
    serde_json::from_str(rest.split_once("</script>").expect("end of the data").0).expect("JSON")
}

#[test]
fn a_run_folder_without_its_boards_shows_every_answer_on_its_board() {
    let folder = tempfile::tempdir().expect("folder");
    let options = Arc::new(RenderOptions { image_size: 64, ..RenderOptions::default() });
    let mut cases = Vec::new();
    for (task, level) in [(Task::FrozenLake, 4), (Task::Maze, 3), (Task::MiniBehaviour, 5)] {
        for instance in generate(task, level, &GenerateOptions::default(), 0..4).expect("boards") {
            cases.push(EvalCase::from_instance(format!("{task}_{}", instance.index), &instance, &options));
        }
    }
    let plans = cases.iter().map(|case| case.board.solve().expect("plan").answer(case.task)).collect();
    let mut client = Half(plans);
    let prompts = Prompts::compact().expect("prompts");
    for label in ["one", "two"] {
        let asked = RunOptions::greedy(Modality::Image);
        plan::run_to_folder(&mut client, label, &cases, &prompts, &asked, folder.path(), &mut |_| {}).expect("run");
    }
    let data = report::read_runs(&[folder.path().to_path_buf()]).expect("report");
    assert_eq!((data.gallery.len(), data.explorer.evaluations.len()), (6, 2), "a strip a task, two stages each");
    let content = explorer_data(&report::render(&data).expect("page"));
    let list = |name: &str| content[name].as_array().cloned().unwrap_or_default();
    assert_eq!((list("boards").len(), list("answers").len()), (12, 24));
    let keys: BTreeMap<&str, String> = cases.iter().map(|case| (case.case_id.as_str(), case.board.key())).collect();
    for board in list("boards") {
        assert_eq!(board[3].as_str(), Some(keys[board[0].as_str().expect("id")].as_str()));
    }
    let solved = list("answers").iter().filter(|answer| answer[2] == 0).count();
    assert_eq!(solved, 12);
    let failed = list("answers").into_iter().find(|answer| answer[2] == 2).expect("a failure");
    assert_eq!(failed[6], "U");
}
