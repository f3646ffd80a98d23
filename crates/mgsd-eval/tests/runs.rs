//! Whole evaluations with clients that know the answers, and with a model in process.

use std::sync::Arc;

use mgsd_data::prompts::Prompts;
use mgsd_eval::cases::{EvalCase, Modality};
use mgsd_eval::client::{Answer, Client, Part, Request};
use mgsd_eval::report::BoardCard;
use mgsd_eval::rows::Row;
use mgsd_eval::run::{Resume, RunOptions};
use mgsd_eval::{Result, perception, plan, rows};
use mgsd_tasks::{GenerateOptions, RenderOptions, Task, generate};

/// Answers each request with the text at its place; `None` fails.
struct Script {
    answers: Vec<Option<String>>,
    asked: Vec<String>,
}

impl Script {
    fn new(answers: Vec<Option<String>>) -> Self {
        Self { answers, asked: Vec::new() }
    }
}

impl Client for Script {
    fn name(&self) -> String {
        "script".to_string()
    }

    fn answer(&mut self, requests: &[Request], on_answer: &mut dyn FnMut(usize, Answer) -> Result<()>) -> Result<()> {
        assert_eq!(requests.len(), self.answers.len());
        // From the last to the first: rows must come back in the order of the cases all the same.
        for (index, request) in requests.iter().enumerate().rev() {
            let shown = request.messages[0].parts.iter().map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Picture(_) => "[picture]".to_string(),
            });
            self.asked.push(shown.collect());
            let answer = match &self.answers[index] {
                Some(text) => Answer { text: text.clone(), tokens: Some(7), ..Answer::default() },
                None => Answer { error: Some("HTTP 500".to_string()), ..Answer::default() },
            };
            on_answer(index, answer)?;
        }
        Ok(())
    }
}

fn cases() -> Vec<EvalCase> {
    let options = Arc::new(RenderOptions { image_size: 64, ..RenderOptions::default() });
    let mut cases = Vec::new();
    for (task, level) in [(Task::FrozenLake, 3), (Task::Maze, 3), (Task::MiniBehaviour, 5)] {
        for instance in generate(task, level, &GenerateOptions::default(), 0..3).expect("boards") {
            let id = format!("{task}_level{level}_{:04}", instance.index);
            cases.push(EvalCase::from_instance(id, &instance, &options));
        }
    }
    cases
}

fn gold_plans(cases: &[EvalCase]) -> Vec<Option<String>> {
    let plan = |case: &EvalCase| case.board.solve().map(|plan| plan.answer(case.task));
    cases.iter().map(|case| Some(format!("<answer>{}</answer>", plan(case).unwrap_or_default()))).collect()
}

#[test]
fn gold_plans_score_optimal_and_failed_answers_are_asked_again() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (cases, prompts) = (cases(), Prompts::compact().expect("prompts"));
    let mut options = RunOptions::greedy(Modality::Image);
    let mut answers = gold_plans(&cases);
    answers[4] = None;
    let mut client = Script::new(answers.clone());
    let (first, _) = plan::run_to_folder(&mut client, "script", &cases, &prompts, &options, folder.path(), &mut |_| {})
        .expect("run");
    assert_eq!((first.summary.total.num_errors, first.summary.total.num_optimal_success), (1, 8));
    assert!(client.asked.iter().all(|question| question.contains("[picture]")));

    // A crash in the middle of a line, then the run goes on: only the failed case is asked.
    let file = folder.path().join("script_image.jsonl");
    let mut bytes = std::fs::read(&file).expect("rows");
    bytes.extend_from_slice(b"{\"case_id\": \"ma");
    std::fs::write(&file, bytes).expect("rows");
    options.resume = Resume::Continue;
    let mut client = Script::new(vec![gold_plans(&cases)[4].clone()]);
    let mut seen = Vec::new();
    let (second, summary) =
        plan::run_to_folder(&mut client, "script", &cases, &prompts, &options, folder.path(), &mut |at| {
            seen.push(at.done)
        })
        .expect("run");
    assert_eq!(seen, [8, 9]);
    assert_eq!((second.summary.total.num_errors, second.summary.total.num_optimal_success), (0, 9));
    let order: Vec<&str> = second.rows.iter().map(|row| row.case_id()).collect();
    assert_eq!(order, cases.iter().map(|case| case.case_id.as_str()).collect::<Vec<_>>());
    let stored: mgsd_eval::summary::Summary = mgsd_eval::json::read(&summary).expect("summary");
    assert_eq!(stored, second.summary);
    assert_eq!(rows::latest(rows::read::<rows::PlanRow>(&file).expect("rows")).len(), 9);

    // Cases of the same names, but one of another board, are not those of these rows.
    let mut others = cases.clone();
    others[3].board = cases[5].board.clone();
    let again = plan::run_to_folder(
        &mut Script::new(Vec::new()),
        "script",
        &others,
        &prompts,
        &options,
        folder.path(),
        &mut |_| {},
    );
    let text = again.expect_err("refused").to_string();
    assert!(
        text.contains("script_image.jsonl") && text.contains(&cases[3].case_id) && text.contains("--out"),
        "{text}"
    );
    assert!(summary.exists());

    // Nor may a part of the boards take the place of all.
    let resumed = |label: &str, cases: &[EvalCase]| {
        let mut client = Script::new(Vec::new());
        plan::run_to_folder(&mut client, label, cases, &prompts, &options, folder.path(), &mut |_| {})
            .expect_err("refused")
            .to_string()
    };
    let text = resumed("script", &cases[..4]);
    assert!(text.contains("script_image.jsonl") && text.contains("not among the boards"), "{text}");
    assert!(summary.exists());
    let text = resumed("script_perception", &cases);
    assert!(text.contains("label") && text.contains("_perception"), "{text}");

    // Who finds the rows in another's hands says nothing about how they were asked.
    let settings = folder.path().join("script_image.run.json");
    let before = std::fs::read(&settings).expect("settings");
    let held = rows::RowLog::resume::<rows::PlanRow>(&file).expect("rows");
    let other = RunOptions { max_new_tokens: 9, ..RunOptions::greedy(Modality::Image) };
    let mut client = Script::new(Vec::new());
    let refused = plan::run_to_folder(&mut client, "script", &cases, &prompts, &other, folder.path(), &mut |_| {});
    assert!(refused.is_err() && std::fs::read(&settings).expect("settings") == before);
    drop(held);

    // A run that begins anew and is stopped leaves no results of the one before.
    options.resume = Resume::Fresh;
    let mut stopped = Stopped;
    let begun = plan::run_to_folder(&mut stopped, "script", &cases, &prompts, &options, folder.path(), &mut |_| {});
    assert!(begun.is_err() && !summary.exists());
}

/// Stops before the first answer.
struct Stopped;

impl Client for Stopped {
    fn name(&self) -> String {
        "stopped".to_string()
    }

    fn answer(&mut self, _: &[Request], _: &mut dyn FnMut(usize, Answer) -> Result<()>) -> Result<()> {
        Err(mgsd_eval::Error::Json { path: "nowhere".into(), message: "stopped".to_string() })
    }
}

#[test]
fn the_text_modality_shows_no_picture() {
    let (cases, prompts) = (cases(), Prompts::compact().expect("prompts"));
    let mut client = Script::new(vec![Some(String::new()); cases.len()]);
    let run = plan::run(&mut client, &cases, &prompts, &RunOptions::greedy(Modality::Text), None, &mut |_| {});
    assert_eq!(run.expect("run").summary.total.num_parse_success, 0);
    assert!(client.asked.iter().all(|question| !question.contains("[picture]") && question.contains('\n')));
}

#[test]
fn gold_perception_answers_are_exact_in_every_question() {
    let (cases, prompts) = (cases(), Prompts::standard().expect("prompts"));
    let mut answers: Vec<Option<String>> =
        cases.iter().map(|case| Some(mgsd_tasks::perception::gold(&case.board))).collect();
    answers[0] = Some("I cannot see the picture.".to_string());
    let mut client = Script::new(answers);
    let run = perception::run(&mut client, &cases, &prompts, &RunOptions::greedy(Modality::Image), None, &mut |_| {});
    let summary = run.expect("run").summary;
    let lake = &summary.tasks["frozenlake_perception_all"];
    assert_eq!((lake.counts.all_exact_match, lake.counts.questions["map_size"]), (2, 2));
    assert_eq!(summary.tasks["minibehaviour_perception_all"].counts.questions.len(), 7);
    assert!((summary.macro_exact_rate() - (2.0 / 3.0 + 2.0) / 3.0).abs() < 1e-12);
}

#[test]
fn a_card_carries_the_board_with_the_plan_drawn_on_it() {
    let (cases, prompts) = (cases(), Prompts::compact().expect("prompts"));
    let mut client = Script::new(gold_plans(&cases));
    let run = plan::run(&mut client, &cases, &prompts, &RunOptions::greedy(Modality::Image), None, &mut |_| {});
    let options = RenderOptions { image_size: 64, ..RenderOptions::default() };
    for (case, row) in cases.iter().zip(run.expect("run").rows) {
        let card = BoardCard::new(case, &row, "base", &options).expect("card");
        assert_eq!(card.verdict, "shortest plan", "{}", case.case_id);
        assert_eq!(card.shortest, Some(card.actions.len() as u64));
        let plain = case.board.render(&options).and_then(|image| image.to_png()).expect("picture");
        assert_ne!(card.picture, mgsd_eval::report::png_data_url(&plain));
    }
}
