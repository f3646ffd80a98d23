//! Boards as a VLMEvalKit data set: one TSV file with a question and a picture (base64) a line.
//!
//! Columns: `index` (a number, unique), `image`, `question`, `answer`, `category` (task), `l2-category` (level),
//! `split`, and `case_id`, `board` and `expected_action_count` for scoring with this project's rules. The kit puts the
//! picture before the question and reads the file with pandas: fields with a tab, a line end or a quote are quoted.

use std::io::{BufWriter, Write};
use std::path::Path;

use base64::Engine as _;
use mgsd_tasks::{Board, RenderOptions};

use super::Case;
use crate::message::IMAGE_MARK;
use crate::prompts::{PromptContext, Prompts};
use crate::{DataError, Example, Result, files, picture};

/// What is asked about the boards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// For a plan.
    Plan,
    /// What is on the board.
    Perception,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The case's identity.
    pub case_id: String,
    /// `test`, `train` or what the instance says.
    pub split: String,
    /// The board.
    pub board: Board,
    /// The picture as a PNG or JPEG file.
    pub picture: Vec<u8>,
    /// What is asked, without the mark of the picture.
    pub question: String,
    /// A right answer: a shortest plan, or what is on the board. Empty when nothing leads to the goal.
    pub answer: String,
    /// Length of the shortest plan, if known.
    pub expected_action_count: Option<usize>,
}

const HEADER: &str =
    "index\timage\tquestion\tanswer\tcategory\tl2-category\tsplit\tcase_id\tboard\texpected_action_count\n";

impl Record {
    /// The record of a benchmark's case.
    ///
    /// # Errors
    /// When the picture cannot be read or drawn, or a prompt template is broken.
    pub fn from_case(case: &Case, ask: Question, prompts: &Prompts, options: &RenderOptions) -> Result<Self> {
        let picture = png(&case.case_id, case.picture(options)?.to_png())?;
        let ids = [&case.case_id, &case.split];
        Self::new(ids, &case.board, picture, case.expected_action_count, ask, prompts)
    }

    /// The record of a task folder's instance: its own picture file, or the board drawn when it has none.
    ///
    /// # Errors
    /// As [`Record::from_case`].
    pub fn from_example(example: &Example, ask: Question, prompts: &Prompts, options: &RenderOptions) -> Result<Self> {
        let board = &example.instance.board;
        let picture = if example.image_path.is_file() {
            let path = &example.image_path;
            let bytes = files::read_bytes(path)?;
            picture::check(&bytes).map_err(|problem| DataError::format(path, "picture", problem))?;
            bytes
        } else {
            png(&example.id, board.render(options).and_then(|image| image.to_png()))?
        };
        let ids = [&example.id, &example.instance.split];
        Self::new(ids, board, picture, Some(example.instance.plan.len()), ask, prompts)
    }

    fn new(
        [case_id, split]: [&String; 2],
        board: &Board,
        picture: Vec<u8>,
        expected_action_count: Option<usize>,
        ask: Question,
        prompts: &Prompts,
    ) -> Result<Self> {
        let task = board.task();
        let (question, answer) = match ask {
            Question::Plan => {
                (prompts.student(task)?, board.solve().map_or_else(String::new, |plan| plan.answer(task)))
            }
            Question::Perception => (prompts.perception(task)?, prompts.perception_answer(&PromptContext::new(board))?),
        };
        Ok(Self {
            case_id: case_id.clone(),
            split: split.clone(),
            board: board.clone(),
            picture,
            question: question.replace(IMAGE_MARK, "").trim().to_string(),
            answer,
            expected_action_count,
        })
    }

    fn line(&self, index: usize) -> String {
        let image = base64::engine::general_purpose::STANDARD.encode(&self.picture);
        let count = self.expected_action_count.map_or_else(String::new, |count| count.to_string());
        let level = format!("level{}", self.board.side());
        let (index, key) = (index.to_string(), self.board.key());
        let fields = [
            &index,
            &image,
            &self.question,
            &self.answer,
            self.board.task().name(),
            &level,
            &self.split,
            &self.case_id,
            &key,
            &count,
        ];
        fields.map(field).join("\t") + "\n"
    }
}

fn png(case_id: &str, bytes: mgsd_tasks::Result<Vec<u8>>) -> Result<Vec<u8>> {
    bytes.map_err(|error| DataError::missing(Path::new(case_id), error.to_string()))
}

/// A field as pandas reads it back.
fn field(text: &str) -> String {
    if text.contains(['\t', '\n', '\r', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}

/// Writes the file, whole or not at all, record by record; returns how many there were.
///
/// # Errors
/// The first error of the records, or when the file cannot be written.
pub fn write(path: &Path, records: impl IntoIterator<Item = Result<Record>>) -> Result<usize> {
    let mut count = 0;
    let mut failed = None;
    let written = files::write_with(path, |file| {
        let mut out = BufWriter::new(file);
        out.write_all(HEADER.as_bytes())?;
        for record in records {
            match record {
                Ok(record) => out.write_all(record.line(count).as_bytes())?,
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::Error::other("a record failed"));
                }
            }
            count += 1;
        }
        out.flush()
    });
    match (failed, written) {
        (Some(error), _) | (None, Err(error)) => Err(error),
        (None, Ok(())) => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mgsd_tasks::{GenerateOptions, Task, generate};

    #[test]
    fn a_field_with_a_line_end_or_a_quote_is_quoted() {
        assert_eq!([field("plain"), field("a\tb"), field("say \"up\"")], ["plain", "\"a\tb\"", "\"say \"\"up\"\"\""]);
    }

    #[test]
    fn a_file_holds_a_line_a_board_and_an_error_leaves_none() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("boards.tsv");
        let prompts = Prompts::compact().expect("prompts");
        let instances = generate(Task::Maze, 3, &GenerateOptions::default(), 0..3).expect("boards");
        let record = |instance: &mgsd_tasks::Instance| {
            let picture = vec![1, 2, 3];
            Record::new(
                [&"id".to_string(), &"test".to_string()],
                &instance.board,
                picture,
                Some(4),
                Question::Plan,
                &prompts,
            )
        };
        assert_eq!(write(&path, instances.iter().map(record)).expect("written"), 3);
        let text = std::fs::read_to_string(&path).expect("file");
        assert_eq!(text.lines().next().map(|header| header.split('\t').count()), Some(10));
        // The prompt has two lines, so that its field is quoted.
        let plan = instances[1].board.solve().expect("plan").answer(Task::Maze);
        let start = format!("\n1\tAQID\t\"maze\nplan\"\t{plan}\t");
        assert!(text.contains(&start), "{start:?} is not in {text:?}");
        assert_eq!(text.matches("\tAQID\t").count(), 3);

        let broken = [Err(DataError::missing(Path::new("x"), "gone".to_string()))];
        let other = folder.path().join("other.tsv");
        assert!(write(&other, broken).expect_err("error").to_string().contains("gone"));
        assert!(!other.exists());
    }
}
