//! The template sets that are part of the binary.

/// A template's file name and its content.
macro_rules! embed {
    ($set:literal, $file:literal) => {
        ($file, include_str!(concat!("../../prompts/", $set, "/", $file)))
    };
}

/// Files of `prompts/standard`.
pub(super) const STANDARD: &[(&str, &str)] = &[
    embed!("standard", "coordinates.txt"),
    embed!("standard", "form_frozenlake.txt"),
    embed!("standard", "form_maze.txt"),
    embed!("standard", "form_minibehaviour.txt"),
    embed!("standard", "legend_frozenlake.txt"),
    embed!("standard", "legend_maze.txt"),
    embed!("standard", "legend_minibehaviour.txt"),
    embed!("standard", "perception_answer_frozenlake.txt"),
    embed!("standard", "perception_answer_maze.txt"),
    embed!("standard", "perception_answer_minibehaviour.txt"),
    embed!("standard", "perception_frozenlake.txt"),
    embed!("standard", "perception_maze.txt"),
    embed!("standard", "perception_minibehaviour.txt"),
    embed!("standard", "plan_answer_frozenlake.txt"),
    embed!("standard", "plan_answer_maze.txt"),
    embed!("standard", "plan_answer_minibehaviour.txt"),
    embed!("standard", "questions_frozenlake.txt"),
    embed!("standard", "questions_maze.txt"),
    embed!("standard", "questions_minibehaviour.txt"),
    embed!("standard", "rules_frozenlake.txt"),
    embed!("standard", "rules_maze.txt"),
    embed!("standard", "rules_minibehaviour.txt"),
    embed!("standard", "state_frozenlake.txt"),
    embed!("standard", "state_maze.txt"),
    embed!("standard", "state_minibehaviour.txt"),
    embed!("standard", "student_frozenlake.txt"),
    embed!("standard", "student_maze.txt"),
    embed!("standard", "student_minibehaviour.txt"),
    embed!("standard", "teacher_context_frozenlake.txt"),
    embed!("standard", "teacher_context_maze.txt"),
    embed!("standard", "teacher_context_minibehaviour.txt"),
    embed!("standard", "teacher_system_frozenlake.txt"),
    embed!("standard", "teacher_system_maze.txt"),
    embed!("standard", "teacher_system_minibehaviour.txt"),
    embed!("standard", "text_frozenlake.txt"),
    embed!("standard", "text_maze.txt"),
    embed!("standard", "text_minibehaviour.txt"),
    embed!("standard", "text_perception_frozenlake.txt"),
    embed!("standard", "text_perception_maze.txt"),
    embed!("standard", "text_perception_minibehaviour.txt"),
];

/// Files of `prompts/compact`.
pub(super) const COMPACT: &[(&str, &str)] = &[
    embed!("compact", "perception_answer_frozenlake.txt"),
    embed!("compact", "perception_answer_maze.txt"),
    embed!("compact", "perception_answer_minibehaviour.txt"),
    embed!("compact", "perception_frozenlake.txt"),
    embed!("compact", "perception_maze.txt"),
    embed!("compact", "perception_minibehaviour.txt"),
    embed!("compact", "plan_answer_frozenlake.txt"),
    embed!("compact", "plan_answer_maze.txt"),
    embed!("compact", "plan_answer_minibehaviour.txt"),
    embed!("compact", "student_frozenlake.txt"),
    embed!("compact", "student_maze.txt"),
    embed!("compact", "student_minibehaviour.txt"),
    embed!("compact", "teacher_context_frozenlake.txt"),
    embed!("compact", "teacher_context_maze.txt"),
    embed!("compact", "teacher_context_minibehaviour.txt"),
    embed!("compact", "teacher_system_frozenlake.txt"),
    embed!("compact", "teacher_system_maze.txt"),
    embed!("compact", "teacher_system_minibehaviour.txt"),
    embed!("compact", "text_frozenlake.txt"),
    embed!("compact", "text_maze.txt"),
    embed!("compact", "text_minibehaviour.txt"),
    embed!("compact", "text_perception_frozenlake.txt"),
    embed!("compact", "text_perception_maze.txt"),
    embed!("compact", "text_perception_minibehaviour.txt"),
];
