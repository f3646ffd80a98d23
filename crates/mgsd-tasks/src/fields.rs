//! Reading the `name=value` lines of an instance text, and writing its lists.

use crate::{Difficulty, Error, Plan, Position, Result};
use std::collections::HashMap;
use std::fmt::{Display, Write as _};
use std::str::FromStr;

/// The fields of a text and the grid lines that follow its last heading (`map:`, `layout:`, `grid:`).
pub(crate) struct Fields<'a> {
    values: HashMap<&'a str, &'a str>,
    grid_heading: Option<&'a str>,
    grid: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    pub fn parse(text: &'a str) -> Self {
        let mut fields = Fields { values: HashMap::new(), grid_heading: None, grid: Vec::new() };
        for line in text.lines() {
            if fields.grid_heading.is_some() {
                if !line.trim().is_empty() {
                    fields.grid.push(line.trim());
                }
            } else if let Some((name, value)) = line.split_once('=') {
                fields.values.insert(name.trim(), value.trim());
            } else if let Some(heading) = line.trim().strip_suffix(':') {
                fields.grid_heading = Some(heading);
            }
        }
        fields
    }

    pub fn text(&self, name: &str) -> Result<&'a str> {
        self.values
            .get(name)
            .copied()
            .ok_or_else(|| Error::field(name, format!("is missing; a line `{name}=...` is expected")))
    }

    pub fn value<T: FromStr>(&self, name: &str, expected: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse().map_err(|_| Error::field(name, format!("{text:?} is not {expected}")))
    }

    pub fn value_or<T: FromStr>(&self, name: &str, expected: &str, absent: T) -> Result<T> {
        if self.values.contains_key(name) { self.value(name, expected) } else { Ok(absent) }
    }

    pub fn number(&self, name: &str) -> Result<usize> {
        self.value(name, "a whole number")
    }

    pub fn position(&self, row: &str, col: &str, side: usize) -> Result<Position> {
        let position = Position::new(self.number(row)?, self.number(col)?);
        if position.row < side && position.col < side {
            return Ok(position);
        }
        Err(Error::field(format!("{row}, {col}"), format!("{position} lies outside a board of side {side}")))
    }

    pub fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        serde_json::from_str(text).map_err(|e| Error::field(name, format!("is not the JSON expected: {e}")))
    }

    /// The plan of the text, or `None` when the field is absent.
    pub fn plan(&self) -> Result<Option<Plan>> {
        let name = "solution_actions";
        if self.values.contains_key(name) { self.json(name).map(Some) } else { Ok(None) }
    }

    pub fn difficulty(&self) -> Result<Difficulty> {
        self.value("difficulty_bucket", "easy, medium or hard")
    }

    /// The lines below a heading; there must be `side` of them.
    pub fn grid(&self, heading: &str, side: usize) -> Result<&[&'a str]> {
        if self.grid_heading != Some(heading) {
            return Err(Error::field(heading, format!("is missing; a line `{heading}:` and {side} rows are expected")));
        }
        if self.grid.len() != side {
            let problem = format!("has {} rows, expected {side} (the level)", self.grid.len());
            return Err(Error::field(heading, problem));
        }
        Ok(&self.grid)
    }
}

/// Appends `name=value` and a line end.
pub(crate) fn put(out: &mut String, name: &str, value: impl Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{name}={value}");
}

/// Appends `items` between brackets with Python's default separator `, `.
pub(crate) fn put_list<T>(out: &mut String, items: &[T], mut item: impl FnMut(&mut String, &T)) {
    out.push('[');
    for (i, value) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        item(out, value);
    }
    out.push(']');
}

/// Appends a number without going through the formatting machinery.
pub(crate) fn put_number(out: &mut String, number: usize) {
    if number >= 10 {
        put_number(out, number / 10);
    }
    out.push((b'0' + (number % 10) as u8) as char);
}

/// Appends `[row, col]`.
pub(crate) fn put_position(out: &mut String, position: &Position) {
    out.push('[');
    put_number(out, position.row);
    out.push_str(", ");
    put_number(out, position.col);
    out.push(']');
}

/// Appends the lines `path_length=` and `solution_actions=`.
pub(crate) fn put_plan(out: &mut String, plan: &Plan) {
    put(out, "path_length", plan.len());
    out.push_str("solution_actions=");
    put_list(out, plan.actions(), |out, action| {
        out.push('"');
        out.push_str(action.word());
        out.push('"');
    });
    out.push('\n');
}

/// Appends `name=` and a list of cells.
pub(crate) fn put_positions(out: &mut String, name: &str, positions: &[Position]) {
    out.push_str(name);
    out.push('=');
    put_list(out, positions, put_position);
    out.push('\n');
}

/// A float as Python prints it: shortest form that reads back, always with a point or an exponent.
pub(crate) fn python_float(value: f64) -> String {
    if value != 0.0 && (value.abs() < 1e-4 || value.abs() >= 1e16) {
        let text = format!("{value:e}");
        let Some((digits, exponent)) = text.split_once('e') else { return text };
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = format!("{value}");
    if text.contains('.') { text } else { text + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [(0.9, "0.9"), (1.0, "1.0"), (0.0001, "0.0001"), (0.00001, "1e-05"), (0.8055, "0.8055")];
        for (value, text) in cases {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn numbers_are_appended_digit_by_digit() {
        let mut out = String::new();
        for number in [0, 7, 10, 99, 100, 9999] {
            put_number(&mut out, number);
            out.push(' ');
        }
        assert_eq!(out, "0 7 10 99 100 9999 ");
    }
}
