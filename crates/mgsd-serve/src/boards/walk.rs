//! What became of an answer: the plan's way over the board, and what the answer says is on it.

use mgsd_tasks::perception::gold;
use mgsd_tasks::plan::parse_benchmark;
use mgsd_tasks::score::benchmark::{BenchmarkCase, score_parsed};
use mgsd_tasks::stated::{Fact, facts};
use mgsd_tasks::{Action, Board, Direction};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Walks the plan of an answer by the benchmark's rules, and reads what the answer states.
pub fn walk(board: &Board, answer: &str) -> Value {
    let parsed = parse_benchmark(board.task(), answer);
    let actions: Vec<&str> = parsed.actions.iter().map(|action| action.code()).collect();
    // Where an action points, for the mark of a step that fails.
    let pointed = |action: &Action| match action {
        Action::Move(direction) => Some(direction.word()),
        Action::Pick | Action::Drop => None,
    };
    let directions: Vec<Option<&str>> = parsed.actions.iter().map(pointed).collect();
    let (has_block, actions, directions) = (parsed.has_block, json!(actions), json!(directions));
    let score = score_parsed(&BenchmarkCase::from_board(board), parsed);
    json!({
        "actions": actions,
        "directions": directions,
        "has_answer_block": has_block,
        "score": score,
        "perception": perception(board, answer),
    })
}

/// What an answer states, question by question, beside what is so; questions that it does not touch are left out.
fn perception(board: &Board, answer: &str) -> Value {
    let truth = facts(board.task(), &gold(board));
    let both = facts(board.task(), answer).into_iter().zip(truth);
    both.filter_map(|((name, said), (_, truth))| {
        let (said, truth) = (said?, truth?);
        let right = said == truth;
        Some(json!({"question": name, "stated": value(&said), "truth": value(&truth), "right": right}))
    })
    .collect()
}

fn value(fact: &Fact) -> Value {
    let words =
        |directions: &BTreeSet<Direction>| directions.iter().map(|direction| direction.word()).collect::<Vec<_>>();
    match fact {
        Fact::Size(rows, columns) => json!({"size": [rows, columns]}),
        Fact::Cell(cell) => json!({"cells": [cell]}),
        Fact::Cells(cells) => json!({"cells": cells}),
        Fact::Directions(directions) => json!({"directions": words(directions)}),
        Fact::Openings(cells) => {
            let open = cells.iter().map(|(cell, open)| json!({"cell": cell, "open": words(open)}));
            json!({"openings": open.collect::<Vec<_>>()})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mgsd_tasks::frozen_lake;

    #[test]
    fn an_answer_is_walked_and_read() {
        let board = Board::from(frozen_lake::Board::from_rows(&["SF", "HG"]).expect("board"));
        let seen = walk(&board, "1. 2x2\n2. (0,0)\n3. (1,1)\n4. (0,1)\nRoute: D (1,0)\n\n<answer>DR</answer>");
        assert_eq!(seen["actions"], json!(["D", "R"]));
        assert_eq!(seen["score"]["invalid_reason"], "fell_into_hole");
        assert_eq!(seen["score"]["path"], json!([[0, 0], [1, 0]]));
        let holes = &seen["perception"][3];
        let (said, truth) = (json!({"cells": [[0, 1]]}), json!({"cells": [[1, 0]]}));
        assert_eq!(holes, &json!({"question": "h_positions", "stated": said, "truth": truth, "right": false}));
        assert_eq!(seen["perception"][2]["right"], true);
    }
}
