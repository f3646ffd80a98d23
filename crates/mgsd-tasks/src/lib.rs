//! The planning tasks FrozenLake, Maze and MiniBehaviour: boards and their rules, seeded generators,
//! shortest plans, pictures, the instance text file, plan parsing, and both scoring rules.
//!
//! The three tasks have the same shape: a folder each, with `board` (state and rules), `solve`,
//! `generate`, `render` and `text`. [`Board`] holds any of them, [`Instance`] a board together with
//! what its text file says about it.
//!
//! ```
//! use mgsd_tasks::{Board, GenerateOptions, Task, generate, score};
//!
//! let options = GenerateOptions::default();
//! let instances = generate(Task::Maze, 4, &options, 0..3)?;
//! let plan = instances[0].board.solve().expect("a maze is connected");
//! let answer = format!("<answer>{}</answer>", plan.answer(Task::Maze));
//! let case = score::BenchmarkCase::from_instance(&instances[0]);
//! assert!(score::benchmark::score(&case, Some(&answer)).optimal_success);
//! # Ok::<(), mgsd_tasks::Error>(())
//! ```

pub mod bench;
mod board;
mod error;
mod fields;
pub mod files;
pub mod frozen_lake;
mod generate;
mod grid;
mod image;
mod instance;
pub mod maze;
pub mod mini_behaviour;
mod overlay;
pub mod perception;
pub mod plan;
mod raster;
mod render;
mod resample;
pub mod rng;
pub mod score;
pub mod stated;
mod tiles;
mod types;

pub use board::Board;
pub use error::{Error, Result};
pub use generate::{FrozenLakeOptions, GenerateOptions, generate};
pub use image::RgbImage;
pub use instance::{Details, Instance};
pub use overlay::draw_plan;
pub use render::{CELL, RenderOptions};
pub use tiles::TileSet;
pub use types::{Action, Difficulty, Direction, Plan, Position, Task};
