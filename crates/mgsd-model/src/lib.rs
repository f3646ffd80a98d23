//! Qwen3-VL: configuration, image processor, tokenizer, chat template, vision tower, text decoder, LoRA, weights in
//! and out, generation with a key-value cache.

pub mod batch;
pub mod bench;
pub mod bench_gpu;
pub mod chat;
pub mod config;
mod decode;
pub mod error;
pub mod generate;
pub mod image;
pub mod init;
pub mod linear;
pub mod lora;
pub mod merge;
pub mod model;
pub mod param;
pub mod patches;
pub mod peft;
pub mod positions;
mod prefill;
pub mod processor;
pub mod reduction;
pub mod resize;
mod rope;
pub mod sampling;
pub mod text;
pub mod tokenizer;
pub mod trace;
pub mod vision;
pub mod weights;
