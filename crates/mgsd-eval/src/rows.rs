//! Result rows on disk: JSON lines, appended one by one, so that a run that was cut short goes on where it stopped.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cases::EvalCase;
use crate::error::{Error, Result};
use crate::sync::Syncer;

/// What every row file has in common: which case a row answers and whether it failed.
pub trait Row: Serialize + DeserializeOwned {
    /// The case's identity, unique within a run.
    fn case_id(&self) -> &str;
    /// Whether the row records a failure of the client (not of the model's plan) and deserves another try.
    fn failed(&self) -> bool;
    /// Whether the row is about this case's board, as far as it tells: identities repeat from folder to folder.
    fn is_about(&self, case: &EvalCase) -> bool;
}

/// One answered planning case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanRow {
    /// The case's identity, such as `maze_level3_0004`.
    pub case_id: String,
    /// `frozenlake`, `maze` or `minibehaviour`.
    pub task: String,
    /// The benchmark's split, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Side of the grid.
    #[serde(default)]
    pub level: Option<u32>,
    /// Place in the benchmark's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_line_index: Option<u64>,
    /// `image` or `text`: how the board was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modality: Option<String>,
    /// The board's key ([`mgsd_tasks::Board::key`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub board: Option<String>,
    /// The model's whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_text: Option<String>,
    /// The parsed plan, such as `["right", "down"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions: Option<Vec<String>>,
    /// The benchmark's verdict, with the fields of `mgsd tasks score --rules benchmark`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_result: Option<Value>,
    /// Tokens in the question, pictures included, where the client tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_tokens: Option<u64>,
    /// Whether the answer was cut at the token limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The case was only drawn, never asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub render_only: bool,
    /// Why there is no answer; null when there is one.
    #[serde(default)]
    pub error: Option<String>,
}

impl PlanRow {
    /// A boolean field of the verdict; absent means false.
    pub fn flag(&self, name: &str) -> bool {
        self.eval_result.as_ref().and_then(|verdict| verdict.get(name)).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Why the walk ended early, such as `wall_blocked:up`.
    pub fn invalid_reason(&self) -> Option<&str> {
        self.eval_result.as_ref()?.get("invalid_reason")?.as_str()
    }
}

impl Row for PlanRow {
    fn case_id(&self) -> &str {
        &self.case_id
    }
    fn failed(&self) -> bool {
        self.error.as_deref().is_some_and(|error| !error.is_empty())
    }
    fn is_about(&self, case: &EvalCase) -> bool {
        self.board.as_ref().is_none_or(|board| *board == case.board.key())
    }
}

/// Rows of a JSONL file in file order. Lines are split on "\n" alone, since answers hold other line separators raw.
/// A last line without its newline that does not parse was torn by a crash and is left out; any other bad line is an
/// error that names it.
pub fn read<R: Row>(path: &Path) -> Result<Vec<R>> {
    let bytes = std::fs::read(path).map_err(Error::io("reading", path))?;
    Ok(parse(path, &bytes)?.0)
}

/// The latest rows of a planning run.
///
/// # Errors
/// When the file cannot be read, or has rows of another kind: answered, but with no verdict about a plan.
pub fn plans(path: &Path) -> Result<Vec<PlanRow>> {
    let rows = latest(read::<PlanRow>(path)?);
    let strange = |row: &&PlanRow| !row.failed() && !row.render_only && row.eval_result.is_none();
    match rows.iter().find(strange) {
        None => Ok(rows),
        Some(row) => Err(Error::Json {
            path: path.to_path_buf(),
            message: format!("the row of {} has no eval_result: these are no rows of `mgsd eval plan`", row.case_id),
        }),
    }
}

/// The rows, and the length of the file's sound part.
fn parse<R: Row>(path: &Path, bytes: &[u8]) -> Result<(Vec<R>, usize)> {
    let mut rows = Vec::new();
    let mut start = 0;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if !line.trim_ascii().is_empty() {
            match serde_json::from_slice(line) {
                Ok(row) => rows.push(row),
                Err(_) if !line.ends_with(b"\n") => return Ok((rows, start)),
                Err(error) => {
                    let path = path.to_path_buf();
                    return Err(Error::Row { path, line: index + 1, message: error.to_string() });
                }
            }
        }
        start += line.len();
    }
    Ok((rows, start))
}

/// One row a case: the last one that did not fail, or else the last one. Order of first appearance.
pub fn latest<R: Row>(rows: Vec<R>) -> Vec<R> {
    let mut place = indexmap::IndexMap::<String, R>::new();
    for row in rows {
        match place.get_mut(row.case_id()) {
            Some(known) if row.failed() && !known.failed() => {}
            Some(known) => *known = row,
            None => {
                place.insert(row.case_id().to_string(), row);
            }
        }
    }
    place.into_values().collect()
}

/// A row file open for appending. Every row reaches the operating system before [`RowLog::append`] returns, and the
/// disk as soon as the disk can.
pub struct RowLog {
    path: PathBuf,
    file: File,
    syncer: Syncer,
}

impl RowLog {
    /// Of a file that nobody else writes to as long as this one lives.
    fn over(path: &Path, file: File) -> Result<Self> {
        let syncer = Syncer::start(&file).map_err(Error::io("syncing", path))?;
        Ok(Self { path: path.to_path_buf(), file, syncer })
    }

    fn open_alone(path: &Path) -> Result<File> {
        let opened = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = opened.map_err(Error::io("opening", path))?;
        // Where a file system has no locks, runs have to keep apart by themselves.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let message = "another run is writing to it; wait for that, or choose another --out or --label".to_string();
            return Err(Error::Json { path: path.to_path_buf(), message });
        }
        Ok(file)
    }

    /// Starts an empty file. Rows that are there already are kept beside it under the same name with `.old`, or, where that is
    /// taken, `.old.1` and so on.
    pub fn create(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(Error::io("creating the folder", folder))?;
        }
        let file = Self::open_alone(path)?;
        if file.metadata().is_ok_and(|there| there.len() == 0) {
            return Self::over(path, file);
        }
        let named = |end: String| {
            let mut name = path.as_os_str().to_os_string();
            name.push(end);
            PathBuf::from(name)
        };
        let names = (0..).map(|number| if number == 0 { ".old".to_string() } else { format!(".old.{number}") });
        let Some(old) = names.map(named).find(|old| !old.exists()) else { unreachable!("names do not end") };
        std::fs::rename(path, old).map_err(Error::io("setting aside", path))?;
        Self::over(path, Self::open_alone(path)?)
    }

    /// Opens a file to go on with it: gives the rows that are there and cuts off a torn last line. A missing file is
    /// an empty one.
    pub fn resume<R: Row>(path: &Path) -> Result<(Self, Vec<R>)> {
        if !path.exists() {
            return Ok((Self::create(path)?, Vec::new()));
        }
        let mut file = Self::open_alone(path)?;
        let bytes = std::fs::read(path).map_err(Error::io("reading", path))?;
        let (rows, sound) = parse(path, &bytes)?;
        file.set_len(sound as u64).map_err(Error::io("cutting the torn last line of", path))?;
        if sound > 0 && bytes[sound - 1] != b'\n' {
            file.write_all(b"\n").map_err(Error::io("writing", path))?;
        }
        Ok((Self::over(path, file)?, rows))
    }

    /// Appends one row as one line in one write.
    pub fn append<R: Row>(&mut self, row: &R) -> Result<()> {
        let mut line = serde_json::to_vec(row)
            .map_err(|error| Error::Json { path: self.path.clone(), message: error.to_string() })?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io("writing", &self.path))?;
        self.syncer.written().map_err(Error::io("syncing", &self.path))
    }

    /// Waits until all rows are on the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.syncer.wait().map_err(Error::io("syncing", &self.path))
    }
}

/// Case identities that need no further try.
pub fn done<R: Row>(rows: &[R]) -> HashSet<String> {
    rows.iter().filter(|row| !row.failed()).map(|row| row.case_id().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case_id: &str, error: Option<&str>) -> PlanRow {
        PlanRow {
            case_id: case_id.into(),
            task: "maze".into(),
            answer_text: Some("a\u{85}\u{2028}b".into()),
            error: error.map(str::to_string),
            ..PlanRow::default()
        }
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_failed_rows_are_tried_again() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("rows.jsonl");
        let mut log = RowLog::create(&path).expect("create");
        log.append(&row("a", None)).expect("append");
        log.append(&row("b", Some("HTTP 500"))).expect("append");
        drop(log);
        let mut bytes = std::fs::read(&path).expect("read");
        let whole = bytes.len();
        bytes.extend_from_slice(br#"{"case_id": "c", "ta"#);
        std::fs::write(&path, &bytes).expect("write");

        let (mut log, rows) = RowLog::resume::<PlanRow>(&path).expect("resume");
        assert_eq!(std::fs::metadata(&path).expect("metadata").len() as usize, whole);
        assert_eq!(done(&rows), HashSet::from(["a".to_string()]));
        log.append(&row("b", None)).expect("append");
        drop(log);
        let rows = latest(read::<PlanRow>(&path).expect("read"));
        assert_eq!(
            rows.iter().map(|row| (row.case_id(), row.failed())).collect::<Vec<_>>(),
            [("a", false), ("b", false)]
        );
    }

    #[test]
    fn a_last_line_that_only_lacks_its_newline_is_kept() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, serde_json::to_vec(&row("a", None)).expect("row")).expect("write");
        let (mut log, rows) = RowLog::resume::<PlanRow>(&path).expect("resume");
        assert_eq!(rows.len(), 1);
        log.append(&row("b", None)).expect("append");
        assert_eq!(read::<PlanRow>(&path).expect("read").len(), 2);
    }

    #[test]
    fn starting_over_sets_the_earlier_rows_aside() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("rows.jsonl");
        for case_id in ["paid for", "also", "new"] {
            RowLog::create(&path).and_then(|mut log| log.append(&row(case_id, None))).expect("rows");
        }
        for (end, case_id) in [("", "new"), (".old", "paid for"), (".old.1", "also")] {
            let rows = read::<PlanRow>(&folder.path().join(format!("rows.jsonl{end}"))).expect("read");
            assert_eq!(rows[0].case_id, case_id);
        }
    }

    #[test]
    fn only_one_run_writes_to_a_file() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("rows.jsonl");
        let mut log = RowLog::create(&path).expect("created");
        log.append(&row("a", None)).expect("append");
        for attempt in [RowLog::create(&path).err(), RowLog::resume::<PlanRow>(&path).err()] {
            let text = attempt.expect("refused").to_string();
            assert!(text.contains("rows.jsonl") && text.contains("another run"), "{text}");
        }
        log.append(&row("b", None)).expect("append");
        drop(log);
        assert_eq!(RowLog::resume::<PlanRow>(&path).expect("resumed").1.len(), 2);
    }

    #[test]
    fn a_broken_line_in_the_middle_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, "{\"case_id\": 1}\n{}\n").expect("write");
        let message = read::<PlanRow>(&path).expect_err("broken").to_string();
        assert!(message.contains("rows.jsonl, line 1"), "{message}");
    }
}
