//! One operation, one file, forward beside backward.

pub mod adamw;
pub mod attention;
pub mod decode_layers;
pub mod embedding;
pub mod gelu;
pub mod head_norm;
pub mod interpolate;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod swiglu;
