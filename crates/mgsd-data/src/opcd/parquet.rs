//! OPCD rows as a parquet file that Hugging Face `datasets` opens with decoded pictures.
//!
//! Pictures are embedded, so the file can be moved alone. What makes `datasets` decode them is the key `huggingface`
//! in the file's metadata. Row groups are written one after the other: only one group's pictures are in memory.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::record::{Field, Row as ParquetRow, RowAccessor};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use serde_json::{Value, json};

use super::Sample;
use crate::picture::Picture;
use crate::{DataError, Result, files};

/// Rows whose pictures are held in memory at a time while writing.
const ROWS_PER_GROUP: usize = 4096;

/// A text column: its name and where its value sits in a row.
type TextColumn = (&'static str, fn(&Sample) -> Option<&str>);

/// The text columns behind the pictures, each written only when some row has it.
const OPTIONAL_COLUMNS: [TextColumn; 6] = [
    ("teacher_text_map", |row| row.teacher_text_map.as_deref()),
    ("frozenlake_task_text", |row| row.frozenlake_task_text.as_deref()),
    ("task", |row| row.task.as_deref()),
    ("vsp_task_text", |row| row.vsp_task_text.as_deref()),
    ("teacher_system_prompt", |row| row.teacher_system_prompt.as_deref()),
    ("teacher_text_context", |row| row.teacher_text_context.as_deref()),
];

/// Writes rows to `path`; pictures that are not embedded yet are read, their paths looked for below `folder`.
pub fn write(path: &Path, rows: &[Sample], folder: &Path) -> Result<()> {
    let columns: Vec<TextColumn> =
        OPTIONAL_COLUMNS.into_iter().filter(|(_, value)| rows.iter().any(|row| value(row).is_some())).collect();
    let mut failure = None;
    let written = files::write_with(path, |file| {
        write_groups(file, rows, &columns, folder).map_err(|error| match error {
            WriteError::Data(error) => {
                failure = Some(error);
                std::io::Error::other("a picture could not be read")
            }
            WriteError::Parquet(error) => std::io::Error::other(error),
        })
    });
    match failure {
        // The cause says more than the writer that stopped because of it.
        Some(error) => Err(error),
        None => written,
    }
}

/// What can stop the writer.
enum WriteError {
    Data(DataError),
    Parquet(ParquetError),
}

impl From<ParquetError> for WriteError {
    fn from(error: ParquetError) -> Self {
        WriteError::Parquet(error)
    }
}

fn write_groups(file: &mut File, rows: &[Sample], columns: &[TextColumn], folder: &Path) -> Result<(), WriteError> {
    let schema = Arc::new(parse_message_type(&message_type(columns))?);
    let properties = Arc::new(properties(columns));
    let mut writer = SerializedFileWriter::new(file, schema, properties)?;
    for group_rows in rows.chunks(ROWS_PER_GROUP) {
        let mut group = writer.next_row_group()?;
        let text = |row: &'_ Sample, value: fn(&Sample) -> Option<&str>| value(row).map(ByteArray::from);
        write_text(&mut group, group_rows.iter().map(|row| text(row, |row| Some(&row.problem))))?;
        write_text(&mut group, group_rows.iter().map(|row| text(row, |row| Some(&row.answer))))?;
        write_pictures(&mut group, group_rows, |row| &row.images, folder)?;
        write_pictures(&mut group, group_rows, |row| &row.teacher_images, folder)?;
        for (_, value) in columns {
            write_text(&mut group, group_rows.iter().map(|row| text(row, *value)))?;
        }
        group.close()?;
    }
    writer.close()?;
    Ok(())
}

/// Definition levels of a picture list: list is there, an entry is there, the entry is a struct, its field is there.
const EMPTY_LIST: i16 = 1;
const NULL_FIELD: i16 = 3;
const FIELD: i16 = 4;

fn write_text(
    group: &mut SerializedRowGroupWriter<'_, &mut File>,
    values: impl Iterator<Item = Option<ByteArray>>,
) -> Result<(), WriteError> {
    let mut present = Vec::new();
    let definition: Vec<i16> = values
        .map(|value| match value {
            Some(value) => {
                present.push(value);
                1
            }
            None => 0,
        })
        .collect();
    write_column(group, &present, &definition, None)
}

fn write_pictures(
    group: &mut SerializedRowGroupWriter<'_, &mut File>,
    rows: &[Sample],
    list: fn(&Sample) -> &[Picture],
    folder: &Path,
) -> Result<(), WriteError> {
    let mut bytes = Vec::with_capacity(rows.len());
    let mut paths = Vec::with_capacity(rows.len());
    for row in rows {
        let (mut row_bytes, mut row_paths) = (Vec::new(), Vec::new());
        for picture in list(row) {
            let picture = picture.embedded(folder).map_err(WriteError::Data)?;
            row_bytes.push(picture.bytes.map(ByteArray::from));
            row_paths.push(picture.path.map(|path| ByteArray::from(path.into_bytes())));
        }
        bytes.push(row_bytes);
        paths.push(row_paths);
    }
    for column in [bytes, paths] {
        let (values, definition, repetition) = levels(column);
        write_column(group, &values, &definition, Some(&repetition))?;
    }
    Ok(())
}

/// A list column's values, definition levels and repetition levels.
fn levels(rows: Vec<Vec<Option<ByteArray>>>) -> (Vec<ByteArray>, Vec<i16>, Vec<i16>) {
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        if row.is_empty() {
            definition.push(EMPTY_LIST);
            repetition.push(0);
        }
        for (index, value) in row.into_iter().enumerate() {
            repetition.push(i16::from(index > 0));
            definition.push(if value.is_some() { FIELD } else { NULL_FIELD });
            values.extend(value);
        }
    }
    (values, definition, repetition)
}

fn write_column(
    group: &mut SerializedRowGroupWriter<'_, &mut File>,
    values: &[ByteArray],
    definition: &[i16],
    repetition: Option<&[i16]>,
) -> Result<(), WriteError> {
    let mut column =
        group.next_column()?.ok_or_else(|| ParquetError::General("more columns than the schema has".to_string()))?;
    column.typed::<ByteArrayType>().write_batch(values, Some(definition), repetition)?;
    column.close()?;
    Ok(())
}

/// The schema in parquet's own notation.
fn message_type(columns: &[TextColumn]) -> String {
    let pictures = |name: &str| {
        format!(
            "OPTIONAL GROUP {name} (LIST) {{ REPEATED GROUP list {{ OPTIONAL GROUP element {{ \
             OPTIONAL BYTE_ARRAY bytes; OPTIONAL BYTE_ARRAY path (STRING); }} }} }}"
        )
    };
    let text = |name: &str| format!("OPTIONAL BYTE_ARRAY {name} (STRING);");
    let mut fields = vec![text("problem"), text("answer"), pictures("images"), pictures("teacher_images")];
    fields.extend(columns.iter().map(|(name, _)| text(name)));
    format!("message schema {{ {} }}", fields.join(" "))
}

fn properties(columns: &[TextColumn]) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("mgsd".to_string())
        .set_key_value_metadata(Some(vec![KeyValue::new(
            "huggingface".to_string(),
            huggingface_features(columns).to_string(),
        )]));
    for list in ["images", "teacher_images"] {
        // A dictionary or bounds of encoded pictures would only cost space.
        let path = ["list", "element", "bytes"].map(str::to_string);
        let column = ColumnPath::new([vec![list.to_string()], path.to_vec()].concat());
        builder = builder
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_statistics_enabled(column, EnabledStatistics::None);
    }
    builder.build()
}

/// The features that `datasets` reads its column types from. `Sequence` is the spelling that old and new versions know.
fn huggingface_features(columns: &[TextColumn]) -> Value {
    let text = json!({"dtype": "string", "_type": "Value"});
    let pictures = json!({"feature": {"_type": "Image"}, "_type": "Sequence"});
    let mut features = serde_json::Map::new();
    features.insert("problem".to_string(), text.clone());
    features.insert("answer".to_string(), text.clone());
    features.insert("images".to_string(), pictures.clone());
    features.insert("teacher_images".to_string(), pictures);
    for (name, _) in columns {
        features.insert((*name).to_string(), text.clone());
    }
    json!({"info": {"features": features}})
}

/// Reads rows of a parquet file, ours or one with paths instead of bytes; unknown columns are left alone.
pub fn read(path: &Path) -> Result<Vec<Sample>> {
    let file = File::open(path).map_err(|source| DataError::io(path, "read", source))?;
    let broken = |error: ParquetError| DataError::format(path, "file", format!("not a readable parquet file: {error}"));
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let rows = reader.get_row_iter(None).map_err(broken)?;
    rows.enumerate()
        .map(|(index, row)| {
            let row = row.map_err(|error| DataError::format(path, format!("row {index}"), error))?;
            sample(row).map_err(|(field, problem)| {
                DataError::format(path, format!("row {index}, column \"{field}\""), problem)
            })
        })
        .collect()
}

fn sample(row: ParquetRow) -> Result<Sample, (String, String)> {
    let mut sample = Sample::default();
    let mut has_problem = false;
    for (name, field) in row.into_columns() {
        let target = match name.as_str() {
            "problem" => {
                has_problem = true;
                sample.problem = text(&name, field)?.unwrap_or_default();
                continue;
            }
            "answer" => {
                sample.answer = text(&name, field)?.unwrap_or_default();
                continue;
            }
            "images" => {
                sample.images = pictures(&name, field)?;
                continue;
            }
            "teacher_images" => {
                sample.teacher_images = pictures(&name, field)?;
                continue;
            }
            "teacher_text_map" => &mut sample.teacher_text_map,
            "frozenlake_task_text" => &mut sample.frozenlake_task_text,
            "task" => &mut sample.task,
            "vsp_task_text" => &mut sample.vsp_task_text,
            "teacher_system_prompt" => &mut sample.teacher_system_prompt,
            "teacher_text_context" => &mut sample.teacher_text_context,
            _ => continue,
        };
        *target = text(&name, field)?;
    }
    if !has_problem {
        let problem = "the column is missing; expected an OPCD file with problem, answer and images";
        return Err(("problem".to_string(), problem.to_string()));
    }
    Ok(sample)
}

fn text(name: &str, field: Field) -> Result<Option<String>, (String, String)> {
    match field {
        Field::Null => Ok(None),
        Field::Str(text) => Ok(Some(text)),
        Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec())
            .map(Some)
            .map_err(|_| (name.to_string(), "not UTF-8 text".to_string())),
        other => Err((name.to_string(), format!("expected text, found {other}"))),
    }
}

fn pictures(name: &str, field: Field) -> Result<Vec<Picture>, (String, String)> {
    let wrong = || {
        let problem = "expected a list of {bytes, path}";
        (name.to_string(), problem.to_string())
    };
    match field {
        Field::Null => Ok(Vec::new()),
        Field::ListInternal(list) => list
            .elements()
            .iter()
            .map(|element| match element {
                Field::Group(group) => picture(group).ok_or_else(wrong),
                _ => Err(wrong()),
            })
            .collect(),
        _ => Err(wrong()),
    }
}

fn picture(group: &ParquetRow) -> Option<Picture> {
    let mut picture = Picture::default();
    for (index, (name, _)) in group.get_column_iter().enumerate() {
        match name.as_str() {
            "bytes" => picture.bytes = group.get_bytes(index).ok().map(|bytes| bytes.data().to_vec()),
            "path" => picture.path = group.get_string(index).ok().cloned(),
            _ => return None,
        }
    }
    Some(picture)
}
