//! What holds for every board and every text.

use mgsd_tasks::score::{BenchmarkCase, TrainingCase, benchmark, training};
use mgsd_tasks::{
    Action, Board, CELL, Difficulty, Direction, GenerateOptions, Instance, Plan, Position, RenderOptions, Task,
    draw_plan, frozen_lake, generate, maze, mini_behaviour, perception, plan,
};
use proptest::prelude::*;

fn position(side: usize) -> impl Strategy<Value = Position> {
    (0..side, 0..side).prop_map(|(row, col)| Position::new(row, col))
}

prop_compose! {
    fn lake()(side in 2..12_usize)(
        letters in proptest::collection::vec(prop_oneof![3 => Just('F'), 1 => Just('H')], side * side),
        start in 0..side * side,
        shift in 1..side * side,
        side in Just(side),
    ) -> Board {
        let mut letters = letters;
        letters[start] = 'S';
        letters[(start + shift) % (side * side)] = 'G';
        let rows: Vec<String> = letters.chunks(side).map(String::from_iter).collect();
        frozen_lake::Board::from_rows(&rows).unwrap().into()
    }
}

prop_compose! {
    fn any_maze()(side in 2..12_usize)(
        walls in proptest::collection::vec(0..16_u8, side * side),
        start in position(side),
        target in position(side),
        side in Just(side),
    ) -> Board {
        maze::Board::new(side, walls, start, target).unwrap().into()
    }
}

prop_compose! {
    fn room()(side in 3..12_usize)(
        start in position(side),
        printer in position(side),
        table in proptest::collection::vec(position(side), 1..7),
        side in Just(side),
    ) -> Option<Board> {
        mini_behaviour::Board::new(side, start, printer, table).ok().map(Board::from)
    }
}

fn board() -> impl Strategy<Value = Board> {
    let room = room().prop_filter_map("things share a cell", |room| room);
    prop_oneof![lake(), any_maze(), room]
}

fn action() -> impl Strategy<Value = Action> {
    let moves = Direction::ALL.map(Action::Move);
    proptest::sample::select([&moves[..], &[Action::Pick, Action::Drop]].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_solvers_plan_is_optimal_by_both_rules(board in board()) {
        if let Some(plan) = board.solve().filter(|plan| !plan.is_empty()) {
            let answer = format!("<answer>{}</answer>", plan.answer(board.task()));
            let score = benchmark::score(&BenchmarkCase::from_board(&board), Some(&answer));
            prop_assert!(score.optimal_success && score.parse_success, "{score:?}");
            prop_assert_eq!(score.steps_executed, plan.len());
            let reward = training::score(&TrainingCase::from_board(&board), Some(&answer));
            prop_assert_eq!(reward.success, 1.0);
            prop_assert_eq!(reward.illegal_action, 0.0);
        }
    }

    #[test]
    fn no_shorter_plan_succeeds_than_the_solvers(
        board in board(),
        actions in proptest::collection::vec(action(), 1..12),
    ) {
        let score = benchmark::score_plan(&BenchmarkCase::from_board(&board), &Plan(actions));
        if score.success {
            prop_assert!(board.solve().is_some_and(|plan| plan.len() <= score.steps_executed));
        }
    }

    #[test]
    fn every_board_is_drawn_at_every_size_with_any_plan(
        board in board(),
        image_size in 16..300_usize,
        actions in proptest::collection::vec(action(), 0..12),
    ) {
        let options = RenderOptions { image_size, ..Default::default() };
        let drawn = board.render(&options);
        let enough = board.task() == Task::FrozenLake || image_size >= CELL * board.side();
        prop_assert_eq!(drawn.is_ok(), enough);
        let Ok(mut image) = drawn else { return Ok(()) };
        prop_assert_eq!(image.pixels.len(), image_size * image_size * 3);
        draw_plan(&board, &Plan(actions), &mut image);
    }

    #[test]
    fn any_text_is_read_and_scored_without_a_panic(board in board(), text in any::<String>()) {
        let wrapped = format!("1. {text} <answer>{text}</ANSWER>{text}");
        for text in [&text, &wrapped] {
            plan::parse_training(board.task(), text);
            benchmark::score(&BenchmarkCase::from_board(&board), Some(text));
            training::score(&TrainingCase::from_board(&board), Some(text));
            perception::score(&board, text);
            // Any outcome but a panic will do.
            let _ = Instance::parse(text);
        }
    }

    #[test]
    fn texts_made_of_action_words_are_read_without_a_panic(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "PICK", "-UP", "-", "up", "PUT", "-DOWN", "←", "L", "<answer>", "</answer>", "<", "ı", "é",
                "(1,2)", ":", "\n", "3.", "4x4", " ", "١", "(", "none", "\u{85}", "ſ",
            ]),
            0..40,
        ),
        board in board(),
    ) {
        let text = words.concat();
        benchmark::score(&BenchmarkCase::from_board(&board), Some(&text));
        training::score(&TrainingCase::from_board(&board), Some(&text));
        perception::score(&board, &text);
    }

    #[test]
    fn gold_perception_answers_score_full_on_every_board(board in board()) {
        let score = perception::score(&board, &perception::gold(&board));
        prop_assert!(score.all_exact_match(), "{score:?}");
    }

    #[test]
    fn a_damaged_instance_text_gives_an_error_and_no_panic(
        cut in 0..300_usize,
        noise in any::<char>(),
        task in proptest::sample::select(Task::ALL.to_vec()),
    ) {
        let text = generate(task, 5, &GenerateOptions::default(), 0..1).unwrap()[0].to_text();
        let mut damaged: String = text.chars().take(cut).collect();
        damaged.push(noise);
        damaged.extend(text.chars().skip(cut + 1));
        // Reading may succeed or fail, but must end.
        let _ = Instance::parse(&damaged);
        prop_assert!(Instance::parse(&text.chars().take(cut).collect::<String>()).is_err());
    }
}

#[test]
fn the_same_seed_gives_the_same_instances_on_any_number_of_threads() {
    for (task, level) in [(Task::FrozenLake, 4), (Task::Maze, 3), (Task::MiniBehaviour, 5)] {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| generate(task, level, &GenerateOptions::default(), 0..60).unwrap())
        };
        assert_eq!(on(1), on(3));
    }
}

#[test]
fn no_board_occurs_twice_nor_among_the_excluded() {
    let first = generate(Task::Maze, 2, &GenerateOptions::default(), 0..9).unwrap();
    let exclude = first.iter().map(|i| i.board.key()).collect();
    let options = GenerateOptions { exclude, seed: 7, ..Default::default() };
    let second = generate(Task::Maze, 2, &options, 0..9).unwrap();
    let mut keys: Vec<String> = first.iter().chain(&second).map(|i| i.board.key()).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 18);
}

#[test]
fn the_largest_sides_work_from_seed_to_picture_and_back() {
    let options = GenerateOptions { difficulties: vec![Difficulty::Hard], ..Default::default() };
    for task in Task::ALL {
        for side in [*task.sides().start(), 16, 100] {
            let hard = task == Task::MiniBehaviour && side == 3;
            let options = if hard {
                GenerateOptions { difficulties: vec![Difficulty::Medium], ..Default::default() }
            } else {
                options.clone()
            };
            let instance = generate(task, side, &options, 0..1).unwrap().remove(0);
            assert_eq!(Instance::parse(&instance.to_text()).unwrap(), instance);
            let options = RenderOptions { image_size: 256.max(CELL * side), ..Default::default() };
            instance.board.render(&options).unwrap();
        }
    }
}

#[test]
fn impossible_requests_say_which_option_and_why() {
    let fails = |task, level, options: &GenerateOptions| generate(task, level, options, 0..60).unwrap_err().to_string();
    let plain = GenerateOptions::default();
    assert!(fails(Task::Maze, 1, &plain).contains("expected 2 to 100"));
    assert!(fails(Task::MiniBehaviour, 2, &plain).contains("expected 3 to 100"));
    assert!(fails(Task::FrozenLake, 101, &plain).contains("expected 2 to 100"));
    assert!(fails(Task::FrozenLake, 2, &plain).contains("ask for fewer"));
    let mut thin = plain.clone();
    thin.frozen_lake.frozen_probability = 0.0;
    assert!(fails(Task::FrozenLake, 4, &thin).contains("frozen-probability"));
    thin.frozen_lake.frozen_probability = 0.05;
    assert!(fails(Task::FrozenLake, 60, &thin).contains("raise it"));
    let none = GenerateOptions { difficulties: Vec::new(), ..plain };
    assert!(fails(Task::Maze, 4, &none).contains("difficulty"));
}
