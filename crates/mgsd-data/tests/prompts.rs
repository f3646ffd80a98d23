//! Both prompt sets over generated boards: the gold texts score full marks, the prompts carry what they must.

mod common;

use common::{instances, reference};
use mgsd_data::message::image_count;
use mgsd_data::prompts::{PromptContext, PromptKind, Prompts, ReferencePlan};
use mgsd_tasks::score::{self, BenchmarkCase, TrainingCase};
use mgsd_tasks::{Board, Task, perception};

fn sets() -> [Prompts; 2] {
    [Prompts::standard().unwrap(), Prompts::compact().unwrap()]
}

#[test]
fn every_plan_answer_is_a_success_under_both_rules() {
    for prompts in sets() {
        for instance in instances(12) {
            // The solver's plan and the plan of the file may differ; both must do.
            for context in [PromptContext::new(&instance.board), PromptContext::of_instance(&instance)] {
                let answer = prompts.plan_answer(&context).unwrap();
                let case = BenchmarkCase::from_instance(&instance);
                let benchmark = score::benchmark::score(&case, Some(&answer));
                assert!(benchmark.parse_success && benchmark.optimal_success, "{answer}");
                let training = score::training::score(&TrainingCase::from_instance(&instance), Some(&answer));
                assert_eq!((training.success, training.format), (1.0, 1.0), "{answer}");
            }
        }
    }
}

#[test]
fn every_perception_answer_scores_full_marks() {
    for prompts in sets() {
        for instance in instances(12) {
            let answer = prompts.perception_answer(&PromptContext::of_instance(&instance)).unwrap();
            let score = perception::score(&instance.board, &answer);
            assert!(score.all_exact_match(), "{answer}");
        }
    }
}

#[test]
fn the_standard_plan_answer_begins_like_the_perception_answer() {
    let prompts = Prompts::standard().unwrap();
    for instance in instances(3) {
        let context = PromptContext::of_instance(&instance);
        let plan = prompts.plan_answer(&context).unwrap();
        let read = prompts.perception_answer(&context).unwrap();
        let board = plan.split("\nRoute:").next().unwrap();
        assert!(read.starts_with(board), "{plan}\n---\n{read}");
    }
}

#[test]
fn prompts_with_a_picture_have_one_mark_and_are_the_same_for_all_boards() {
    for prompts in sets() {
        for task in Task::ALL {
            assert_eq!(image_count(&prompts.student(task).unwrap()), 1);
            assert_eq!(image_count(&prompts.perception(task).unwrap()), 1);
        }
    }
}

#[test]
fn prompts_without_a_picture_have_no_mark() {
    for prompts in sets() {
        for instance in instances(1) {
            let context = PromptContext::of_instance(&instance);
            for text in [
                prompts.teacher_system(context.task).unwrap().unwrap_or_default(),
                prompts.teacher_context(&context, ReferencePlan::Given).unwrap(),
                prompts.text(&context).unwrap(),
                prompts.text_perception(&context).unwrap(),
                prompts.plan_answer(&context).unwrap(),
            ] {
                assert_eq!(image_count(&text), 0, "{text}");
            }
        }
    }
}

#[test]
fn only_the_teacher_with_a_reference_sees_the_plan() {
    for prompts in sets() {
        // Short plans occur by chance in words; these boards have long ones.
        for instance in instances(12).into_iter().filter(|instance| instance.plan.len() >= 6) {
            let context = PromptContext::of_instance(&instance);
            let plan = instance.plan.answer(context.task);
            let given = prompts.teacher_context(&context, ReferencePlan::Given).unwrap();
            let withheld = prompts.teacher_context(&context, ReferencePlan::Withheld).unwrap();
            assert!(given.contains(&plan));
            assert!(!withheld.contains(&plan), "{withheld}");
            assert!(!prompts.text(&context).unwrap().contains(&plan));
        }
    }
}

#[test]
fn different_boards_have_different_texts() {
    for prompts in sets() {
        let mut seen = std::collections::HashMap::new();
        for instance in instances(12) {
            let text = prompts.text(&PromptContext::new(&instance.board)).unwrap();
            if let Some(other) = seen.insert(text, instance.board.key()) {
                assert_eq!(other, instance.board.key());
            }
        }
    }
}

fn lake() -> Board {
    let rows = ["SFF", "FHF", "FFG"];
    Board::FrozenLake(mgsd_tasks::frozen_lake::Board::from_rows(&rows).unwrap())
}

#[test]
fn compact_frozen_lake_texts_are_what_the_tiny_models_learned() {
    let prompts = Prompts::compact().unwrap();
    let context = PromptContext::new(&lake());
    assert_eq!(prompts.student(Task::FrozenLake).unwrap(), "<image>frozenlake\nplan");
    assert_eq!(prompts.perception(Task::Maze).unwrap(), "<image>maze\nread");
    assert_eq!(prompts.teacher_system(Task::Maze).unwrap(), None);
    assert_eq!(prompts.text(&context).unwrap(), "frozenlake\nSFF\nFHF\nFFG\nplan");
    assert_eq!(prompts.text_perception(&context).unwrap(), "frozenlake\nSFF\nFHF\nFFG\nread");
    assert_eq!(
        prompts.teacher_context(&context, ReferencePlan::Given).unwrap(),
        "frozenlake\nSFF\nFHF\nFFG\nreference DDRR\nplan"
    );
    assert_eq!(
        prompts.plan_answer(&context).unwrap(),
        "1. 3x3\n2. (0,0)\n3. (2,2)\n4. (1,1)\nRoute: D (1,0) D (2,0) R (2,1) R (2,2)\n<answer>DDRR</answer>"
    );
    assert_eq!(prompts.perception_answer(&context).unwrap(), "1. 3x3\n2. (0,0)\n3. (2,2)\n4. (1,1)");
}

#[test]
fn compact_maze_and_room_texts_are_what_the_tiny_models_learned() {
    use mgsd_tasks::{Position, maze, mini_behaviour};
    let prompts = Prompts::compact().unwrap();
    let at = Position::new;
    let maze = maze::Board::new(2, vec![13, 13, 6, 10], at(0, 0), at(0, 1)).unwrap();
    let context = PromptContext::new(&maze.into());
    assert_eq!(
        prompts.text(&context).unwrap(),
        "maze\nsize 2x2\nstart (0,0)\ngoal (0,1)\n(0,0): down\n(0,1): down\n(1,0): up, right\n(1,1): up, left\nplan"
    );
    assert_eq!(
        prompts.plan_answer(&context).unwrap(),
        "1. 2x2\n2. (0,0)\n3. (0,1)\n4.\n(0,0): down\n(0,1): down\n(1,0): up, right\n(1,1): up, left\n\
         Route: D (1,0) R (1,1) U (0,1)\n<answer>DRU</answer>"
    );
    assert!(prompts.perception_answer(&context).unwrap().ends_with("(1,1): up, left\n5. down"));
    let table = vec![at(2, 1), at(2, 2), at(3, 1), at(3, 2)];
    let room = mini_behaviour::Board::new(4, at(0, 0), at(0, 2), table).unwrap();
    let context = PromptContext::new(&room.into());
    assert_eq!(prompts.text(&context).unwrap(), "minibehaviour\nA.P.\n....\n.TT.\n.TT.\nplan");
    assert_eq!(
        prompts.plan_answer(&context).unwrap(),
        "1. 4x4\n2. (0,0)\n3. (0,2)\n4. (2,1); (2,2); (3,1); (3,2)\n\
         Route: R (0,1) PICK D (1,1) DROP\n<answer>R,PICK,D,DROP</answer>"
    );
    assert_eq!(
        prompts.perception_answer(&context).unwrap(),
        "1. 4x4\n2. (0,0)\n3. (0,2)\n4. (2,1); (2,2); (3,1); (3,2)\n5. (0,1); (0,3); (1,2)\n\
         6. (1,1); (1,2); (2,0); (2,3); (3,0); (3,3)\n7. right, down"
    );
}

#[test]
fn the_standard_perception_answer_is_worded_like_the_reference_gold() {
    let Some(path) = reference("perception_gold_public.json") else { return };
    let records: Vec<mgsd_data::perception_sft::Record> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let prompts = Prompts::standard().unwrap();
    for record in records {
        let text = std::fs::read_to_string(reference(&record.source_text).unwrap()).unwrap();
        let instance = mgsd_tasks::Instance::parse(&text).unwrap();
        let answer = prompts.perception_answer(&PromptContext::of_instance(&instance)).unwrap();
        assert_eq!(answer, record.messages[1].content);
    }
}

/// The compact set as a folder, to be changed by a test.
fn folder_set() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts/compact");
    for kind in PromptKind::ALL {
        for task in Task::ALL {
            let name = kind.file_name(task);
            std::fs::copy(source.join(&name), folder.path().join(&name)).unwrap();
        }
    }
    folder
}

#[test]
fn a_folder_replaces_the_embedded_prompts() {
    let folder = folder_set();
    std::fs::write(folder.path().join("student_maze.txt"), "Find the way.\n").unwrap();
    let prompts = Prompts::open(folder.path().to_str().unwrap()).unwrap();
    assert_eq!(prompts.student(Task::Maze).unwrap(), "Find the way.\n\n<image>");
    assert_eq!(
        prompts.student(Task::FrozenLake).unwrap(),
        Prompts::compact().unwrap().student(Task::FrozenLake).unwrap()
    );
}

#[test]
fn a_missing_template_is_named() {
    let folder = folder_set();
    std::fs::remove_file(folder.path().join("text_maze.txt")).unwrap();
    let error = Prompts::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("text_maze.txt") && error.contains("missing"), "{error}");
}

#[test]
fn a_student_prompt_cannot_show_the_state() {
    let folder = folder_set();
    let path = folder.path().join("student_maze.txt");
    std::fs::write(&path, "<image>goal {{ goal | cell }}").unwrap();
    let prompts = Prompts::from_folder(folder.path()).unwrap();
    let error = prompts.student(Task::Maze).unwrap_err().to_string();
    assert!(error.contains("student_maze.txt") && error.contains("line 1"), "{error}");
}

#[test]
fn a_board_without_a_plan_has_no_plan_answer() {
    let rows = ["SH", "HG"];
    let board = mgsd_tasks::frozen_lake::Board::from_rows(&rows).unwrap();
    let context = PromptContext::new(&board.into());
    for prompts in sets() {
        let error = prompts.plan_answer(&context).unwrap_err().to_string();
        assert!(error.contains("plan_answer_frozenlake.txt"), "{error}");
        prompts.text(&context).unwrap();
    }
}
