//! Finding the plan in a model's response, by the two rules in use.
//!
//! The rules differ on purpose: [`parse_training`] is the reward's reading, [`parse_benchmark`] the
//! published benchmark's. Both look at whole words (runs of letters, digits and `_`), so that no
//! response can be read half.

use crate::{Action, Direction, Task};

/// What was read from a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// The actions in order.
    pub actions: Vec<Action>,
    /// The text that was read: the answer block without blanks around it.
    pub answer: &'a str,
    /// Whether there is an answer block.
    pub has_block: bool,
    /// Words that look like an action but are none of the task's, in upper case (benchmark only).
    pub invalid: Vec<String>,
}

/// Reads a response as the training reward does.
///
/// The first `<answer>` block counts; without one there is no action. If nothing but the letters L, R, U, D,
/// the digits 0 to 3 and arrows is left when blanks are taken out, each is an action. Otherwise
/// the words and arrows count that are actions: `LEFT`, `L`, `0`, `PICK`, `PICKUP`, `PICK_UP`,
/// `PICK-UP`, `GRAB`, `DROP`, `PUTDOWN`, `PUT_DOWN`, `PUT-DOWN`, in any case. PICK and DROP are passed over
/// where the task has none.
pub fn parse_training(task: Task, response: &str) -> Parsed<'_> {
    let Some(block) = first_block(response) else { return Parsed::default() };
    let answer = trim(block);
    let mut parsed = Parsed { answer, has_block: true, ..Parsed::default() };
    if compact(answer, |_| false, arrow, &mut parsed.actions) {
        return parsed;
    }
    let carries = task == Task::MiniBehaviour;
    scan(answer, arrow, |word, rest| match training_word(word, rest) {
        Some((Some(action), used)) => {
            if carries || matches!(action, Action::Move(_)) {
                parsed.actions.push(action);
            }
            used
        }
        Some((None, used)) => used,
        None => 0,
    });
    parsed
}

/// Reads a response as the published benchmark does.
///
/// The last `<answer>` block counts; without one the whole text. In FrozenLake and Maze, letters and
/// digits in a row are actions when only blanks and `, ; | / > -` stand between them. Otherwise the words
/// count that are actions: besides the training rule's, `LEFTWARD`, `LEFTWARDS` and so on, `PLACE`, `4` (pick) and
/// `5` (drop); neither arrows nor `PICK_UP`, `PUTDOWN`. PICK and DROP are listed as invalid where the task has none.
pub fn parse_benchmark(task: Task, response: &str) -> Parsed<'_> {
    let block = last_block(response);
    let answer = trim(block.unwrap_or(response));
    let mut parsed = Parsed { answer, has_block: block.is_some(), ..Parsed::default() };
    let carries = task == Task::MiniBehaviour;
    let joint = |c: char| matches!(c, ',' | ';' | '|' | '/' | '>' | '-');
    if !carries && compact(answer, joint, |_| None, &mut parsed.actions) {
        return parsed;
    }
    scan(
        answer,
        |_| None,
        |word, rest| {
            let Some((action, used)) = benchmark_word(word, rest) else { return 0 };
            match action {
                Some(action) if carries || matches!(action, Action::Move(_)) => parsed.actions.push(action),
                _ => parsed.invalid.push(upper(word, &rest[..used])),
            }
            used
        },
    );
    parsed
}

/// Python's `str.isspace`, which knows four control characters more than Unicode's property.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.strip`.
fn trim(text: &str) -> &str {
    text.trim_matches(is_blank)
}

/// Whether a character belongs to a word: letters, numbers, `_`. Circled letters are signs in Python.
pub(crate) fn is_word(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    c.is_alphanumeric() && !('\u{24b6}'..='\u{24e9}').contains(&c)
}

/// The ASCII letter that a letter equals when case is ignored, in upper case. The second value tells whether
/// the upper case of the letter itself is that ASCII letter too.
fn fold(c: char) -> Option<(u8, bool)> {
    match c {
        _ if c.is_ascii() => Some((c.to_ascii_uppercase() as u8, true)),
        '\u{131}' => Some((b'I', true)),
        '\u{17f}' => Some((b'S', true)),
        '\u{130}' => Some((b'I', false)),
        '\u{212a}' => Some((b'K', false)),
        _ => None,
    }
}

/// Length of `<answer>` or `</answer>` at the start of `text`, in any case.
fn tag(text: &str, name: &str) -> Option<usize> {
    let mut chars = text.char_indices();
    for expected in name.bytes() {
        let (_, c) = chars.next()?;
        let (letter, _) = fold(c)?;
        if letter != expected {
            return None;
        }
    }
    Some(chars.next().map_or(text.len(), |(i, _)| i))
}

/// The next `<answer>...</answer>` at or after `from`: its content and the end.
fn next_block(text: &str, from: usize) -> Option<(&str, usize)> {
    let bytes = text.as_bytes();
    let open = |at: usize| bytes[at..].iter().position(|b| *b == b'<').map(|i| at + i);
    let mut at = from;
    let start = loop {
        at = open(at)?;
        if let Some(length) = tag(&text[at..], "<ANSWER>") {
            break at + length;
        }
        at += 1;
    };
    at = start;
    loop {
        at = open(at)?;
        if let Some(length) = tag(&text[at..], "</ANSWER>") {
            return Some((&text[start..at], at + length));
        }
        at += 1;
    }
}

fn first_block(text: &str) -> Option<&str> {
    next_block(text, 0).map(|(block, _)| block)
}

fn last_block(text: &str) -> Option<&str> {
    let (mut last, mut end) = next_block(text, 0)?;
    while let Some((block, after)) = next_block(text, end) {
        (last, end) = (block, after);
    }
    Some(last)
}

fn arrow(c: char) -> Option<Direction> {
    match c {
        '←' => Some(Direction::Left),
        '↓' => Some(Direction::Down),
        '→' => Some(Direction::Right),
        '↑' => Some(Direction::Up),
        _ => None,
    }
}

fn letter(c: char) -> Option<Direction> {
    match c {
        'L' | 'l' | '0' => Some(Direction::Left),
        'D' | 'd' | '1' => Some(Direction::Down),
        'R' | 'r' | '2' => Some(Direction::Right),
        'U' | 'u' | '3' => Some(Direction::Up),
        _ => None,
    }
}

/// Reads a text of single letters; false, with no actions, when anything else occurs or nothing at all.
fn compact(
    text: &str,
    joint: impl Fn(char) -> bool,
    sign: impl Fn(char) -> Option<Direction>,
    actions: &mut Vec<Action>,
) -> bool {
    for c in text.chars() {
        if let Some(direction) = letter(c).or_else(|| sign(c)) {
            actions.push(Action::Move(direction));
        } else if !(is_blank(c) || joint(c)) {
            actions.clear();
            return false;
        }
    }
    !actions.is_empty()
}

/// Goes through words and signs. `word` gets a word and the text after it, and returns how much of that text
/// it has used up.
fn scan(text: &str, sign: impl Fn(char) -> Option<Direction>, mut word: impl FnMut(&str, &str) -> usize) {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if !is_word(c) {
            if let Some(direction) = sign(c) {
                // A sign is a word of its own; hand over its letter.
                word(sign_word(direction), "");
            }
            at += c.len_utf8();
            continue;
        }
        let rest = &text[at..];
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (found, after) = rest.split_at(length);
        at += length + word(found, after);
    }
}

fn sign_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Left => "L",
        Direction::Down => "D",
        Direction::Right => "R",
        Direction::Up => "U",
    }
}

/// A word folded to upper-case ASCII in place; the flag tells whether its true upper case is the same.
fn folded<'b>(word: &str, buffer: &'b mut [u8; 16]) -> Option<(&'b str, bool)> {
    let mut exact = true;
    let mut length = 0;
    for c in word.chars() {
        let (byte, same) = fold(c)?;
        *buffer.get_mut(length)? = byte;
        exact &= same;
        length += 1;
    }
    std::str::from_utf8(&buffer[..length]).ok().map(|text| (text, exact))
}

fn direction_word(word: &str) -> Option<Direction> {
    match word {
        "L" | "LEFT" | "0" => Some(Direction::Left),
        "D" | "DOWN" | "1" => Some(Direction::Down),
        "R" | "RIGHT" | "2" => Some(Direction::Right),
        "U" | "UP" | "3" => Some(Direction::Up),
        _ => None,
    }
}

/// Whether `-word` follows, ended by something that is no part of a word; and its length.
fn joined(rest: &str, word: &str) -> Option<usize> {
    let after = rest.strip_prefix('-')?;
    let length = after.find(|c| !is_word(c)).unwrap_or(after.len());
    let mut buffer = [0; 16];
    let (found, _) = folded(&after[..length], &mut buffer)?;
    (found == word).then_some(1 + length)
}

/// An action word of the training rule: the action (`None` if its upper case is not ASCII) and how much of the
/// following text belongs to it.
fn training_word(word: &str, rest: &str) -> Option<(Option<Action>, usize)> {
    let mut buffer = [0; 16];
    let (name, exact) = folded(word, &mut buffer)?;
    let (action, used) = match name {
        "PICK" => (Action::Pick, joined(rest, "UP").unwrap_or(0)),
        "PUT" => (Action::Drop, joined(rest, "DOWN")?),
        "PICKUP" | "PICK_UP" | "GRAB" => (Action::Pick, 0),
        "DROP" | "PUTDOWN" | "PUT_DOWN" => (Action::Drop, 0),
        _ => (Action::Move(direction_word(name)?), 0),
    };
    Some((exact.then_some(action), used))
}

/// The same for the benchmark rule.
fn benchmark_word(word: &str, rest: &str) -> Option<(Option<Action>, usize)> {
    let mut buffer = [0; 16];
    let (name, exact) = folded(word, &mut buffer)?;
    let (action, used) = match name {
        "PICK" => (Action::Pick, joined(rest, "UP").unwrap_or(0)),
        "PICKUP" | "GRAB" | "4" => (Action::Pick, 0),
        "DROP" | "PLACE" | "5" => (Action::Drop, 0),
        _ => {
            let stem = name.strip_suffix('S').filter(|n| n.ends_with("WARD")).unwrap_or(name);
            let stem = stem.strip_suffix("WARD").filter(|n| n.len() > 1).unwrap_or(name);
            (Action::Move(direction_word(stem)?), 0)
        }
    };
    Some((exact.then_some(action), used))
}

fn upper(word: &str, rest: &str) -> String {
    let mut text = word.to_uppercase();
    text.push_str(&rest.to_uppercase());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(task: Task, text: &str) -> String {
        let codes: Vec<&str> = parse_training(task, text).actions.iter().map(|a| a.code()).collect();
        codes.join(" ")
    }

    fn benchmark(task: Task, text: &str) -> String {
        let codes: Vec<&str> = parse_benchmark(task, text).actions.iter().map(|a| a.code()).collect();
        codes.join(" ")
    }

    #[test]
    fn training_takes_the_first_block_and_benchmark_the_last() {
        let text = "<answer>LL</answer> no <ANSWER> RR\n</ANSWER>";
        assert_eq!(training(Task::Maze, text), "L L");
        assert_eq!(benchmark(Task::Maze, text), "R R");
        assert_eq!(training(Task::Maze, "go up"), "");
        assert_eq!(benchmark(Task::Maze, "go up"), "U");
    }

    #[test]
    fn hyphenated_and_two_word_forms_read_as_each_rule_says() {
        let text = "<answer>pick-up, pick up, put-down, place</answer>";
        assert_eq!(training(Task::MiniBehaviour, text), "PICK PICK U DROP");
        assert_eq!(benchmark(Task::MiniBehaviour, text), "PICK PICK U D DROP");
    }

    #[test]
    fn letters_inside_words_are_no_actions() {
        assert_eq!(training(Task::Maze, "<answer>L² éR _U_ D.</answer>"), "D");
        assert_eq!(benchmark(Task::Maze, "<answer>UPWARDS, WARD, leftward, LWARD</answer>"), "U L");
    }
}
