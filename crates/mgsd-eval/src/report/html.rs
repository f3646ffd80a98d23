//! Small pieces of markup that all parts of the page share.

use std::fmt::Write as _;

/// Text as it may stand in an element or in a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(character),
        }
    }
    out
}

/// A share as whole per cent without its sign; `<1` and `>99` where rounding would claim none or all.
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    match value.round() {
        rounded if rounded == 0.0 && value > 0.0 => "<1".to_string(),
        rounded if rounded == 100.0 && value < 100.0 => ">99".to_string(),
        rounded => format!("{}", if rounded == 0.0 { 0.0 } else { rounded }),
    }
}

/// A difference of shares in points, with a true minus sign.
pub fn points(difference: f64) -> String {
    let rounded = (difference * 100.0).round();
    if rounded < 0.0 { format!("\u{2212}{}", -rounded) } else { format!("{}", rounded.abs()) }
}

/// A place on a track of 0 to 100, as CSS wants it.
pub fn place(share: f64) -> String {
    format!("{:.2}%", share.clamp(0.0, 1.0) * 100.0)
}

/// A task as the page calls it.
pub fn task_name(task: &str) -> &str {
    match task {
        "frozenlake" => "FrozenLake",
        "maze" => "Maze",
        "minibehaviour" => "MiniBehaviour",
        crate::demo::MACRO => "All tasks",
        other => other,
    }
}

/// A question or another identifier in words.
pub fn words(identifier: &str) -> String {
    let text = match identifier {
        "h_positions" => "hole positions".to_string(),
        other => other.replace('_', " "),
    };
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// Opens a figure's section: heading, what to see, how to read it.
pub fn section(out: &mut String, id: &str, heading: &str, caption: &str) {
    let _ = write!(out, "<section id=\"{id}\" aria-labelledby=\"{id}-h\"><h2 id=\"{id}-h\">{}</h2>", escape(heading));
    if !caption.is_empty() {
        let _ = write!(out, "<p class=\"caption\">{}</p>", escape(caption));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_never_claims_none_or_all() {
        assert_eq!(percent(0.004), "<1");
        assert_eq!(percent(0.997), ">99");
        assert_eq!([percent(0.0), percent(1.0), percent(0.125)], ["0", "100", "13"]);
        assert_eq!([points(-0.031), points(-0.001), points(0.5)], ["\u{2212}3", "0", "50"]);
    }

    #[test]
    fn markup_in_an_answer_stays_text() {
        assert_eq!(escape("<img src=x onerror='a'>\"&"), "&lt;img src=x onerror=&#39;a&#39;&gt;&quot;&amp;");
    }
}
