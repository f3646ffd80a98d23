//! A folder of task instances: `DIR/{FrozenLake,Maze,MiniBehaviour}/level<L>/{text/NNNN.txt,image/NNNN.png}`.

use std::path::{Path, PathBuf};

use mgsd_tasks::{Instance, RenderOptions, Task};
use rayon::prelude::*;

use crate::{DataError, Result, files};

/// One instance of a folder.
#[derive(Debug, Clone)]
pub struct Example {
    /// `<task>_level<N>_<stem>`.
    pub id: String,
    /// The task.
    pub task: Task,
    /// Side of the grid, as the folder's name says.
    pub level: usize,
    /// The parsed instance file.
    pub instance: Instance,
    /// The instance file, verbatim.
    pub text: String,
    /// Where the instance file lies.
    pub text_path: PathBuf,
    /// Where its picture lies, or would.
    pub image_path: PathBuf,
}

impl Example {
    /// The picture's path, or an error that names the missing file.
    pub fn existing_image(&self) -> Result<&Path> {
        if self.image_path.is_file() {
            return Ok(&self.image_path);
        }
        Err(DataError::missing(
            &self.image_path,
            format!("the picture of {} is missing; generate the folder with pictures", self.text_path.display()),
        ))
    }
}

/// Which instances of a folder to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// These tasks only; all that are there when empty.
    pub tasks: Vec<Task>,
    /// These levels only, in this order; all that are there, in rising order, when empty.
    pub levels: Vec<usize>,
}

/// Reads the instances of a folder: by task (FrozenLake, Maze, MiniBehaviour), level and file name.
///
/// An error when nothing matches the filter, when a task that the filter names is not there, and when a level is there for none
/// of the tasks.
pub fn read(folder: &Path, filter: &Filter) -> Result<Vec<Example>> {
    if !folder.is_dir() {
        return Err(DataError::missing(folder, format!("no such folder; {LAYOUT}")));
    }
    let mut paths = Vec::new();
    let mut missing: Vec<usize> = filter.levels.clone();
    for task in Task::ALL {
        if !filter.tasks.is_empty() && !filter.tasks.contains(&task) {
            continue;
        }
        let task_folder = folder.join(task.dir_name());
        if !task_folder.is_dir() {
            if filter.tasks.is_empty() {
                continue;
            }
            return Err(DataError::missing(&task_folder, format!("no folder for the task {task}; {LAYOUT}")));
        }
        for level in levels(&task_folder, filter)? {
            let text_folder = task_folder.join(format!("level{level}")).join("text");
            if !text_folder.is_dir() {
                continue;
            }
            missing.retain(|other| *other != level);
            let texts = files::list(&text_folder)?.into_iter();
            paths.extend(
                texts
                    .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
                    .map(|path| (task, level, path)),
            );
        }
    }
    if paths.is_empty() {
        let wanted =
            if filter.levels.is_empty() { String::new() } else { format!(" of the levels {:?}", filter.levels) };
        return Err(DataError::missing(folder, format!("no instance files{wanted}; {LAYOUT}")));
    }
    if !missing.is_empty() {
        return Err(DataError::missing(folder, format!("nothing of the levels {missing:?}; {LAYOUT}")));
    }
    paths.into_par_iter().map(|(task, level, path)| read_example(task, level, path)).collect()
}

/// The layout, for error messages.
const LAYOUT: &str = "expected {FrozenLake,Maze,MiniBehaviour}/level<L>/text/*.txt, as `mgsd tasks generate` writes";

/// Levels in the order of their first mention.
pub fn without_repeats(levels: &[usize]) -> Vec<usize> {
    let first = |(at, level): &(usize, &usize)| !levels[..*at].contains(level);
    levels.iter().enumerate().filter(first).map(|(_, level)| *level).collect()
}

/// The levels to read of a task's folder.
fn levels(task_folder: &Path, filter: &Filter) -> Result<Vec<usize>> {
    if !filter.levels.is_empty() {
        return Ok(without_repeats(&filter.levels));
    }
    let mut levels = Vec::new();
    for path in files::list(task_folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(level) = name.strip_prefix("level").and_then(|level| level.parse::<usize>().ok()) else { continue };
        if name != format!("level{level}") {
            return Err(DataError::missing(&path, format!("expected the name level{level}; rename the folder")));
        }
        levels.push(level);
    }
    levels.sort_unstable();
    Ok(levels)
}

fn read_example(task: Task, level: usize, text_path: PathBuf) -> Result<Example> {
    let text = files::read_text(&text_path)?;
    let instance = Instance::parse(&text).map_err(|error| DataError::format(&text_path, "instance", error))?;
    if instance.task() != task {
        return Err(DataError::format(
            &text_path,
            "field \"task\"",
            format!("{} in the folder of {task}; move the file", instance.task()),
        ));
    }
    if instance.is_slippery() {
        return Err(DataError::format(
            &text_path,
            "field \"is_slippery\"",
            "true, but the prompts say that a step leads where it points, and so does evaluation; make the boards without \
             --slippery",
        ));
    }
    if instance.level() != level {
        return Err(DataError::format(
            &text_path,
            "board",
            format!("of level {} in the folder of level {level}; move the file", instance.level()),
        ));
    }
    let stem = text_path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Example {
        id: format!("{task}_level{level}_{stem}"),
        task,
        level,
        instance,
        image_path: image_path(&text_path, &stem),
        text,
        text_path,
    })
}

/// `level<L>/text/NNNN.txt` has its picture in `level<L>/image/NNNN.png`.
fn image_path(text_path: &Path, stem: &str) -> PathBuf {
    let level_folder = text_path.parent().and_then(Path::parent);
    level_folder.unwrap_or(Path::new("")).join("image").join(format!("{stem}.png"))
}

/// Writes instances as a task folder below `folder`, with pictures when `pictures` says how to draw them: files named
/// by the instance's index in four digits, each under its name only when it is complete.
pub fn write_instances(folder: &Path, instances: &[Instance], pictures: Option<&RenderOptions>) -> Result<()> {
    mgsd_tasks::files::write_instances(folder, instances, pictures, || ())
        .map_err(|error| DataError::missing(folder, format!("instances could not be written: {error}")))
}
