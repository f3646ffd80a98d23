//! Speed of training and decoding: `cargo run --release -p mgsd-model --example speed [train|decode|nano|all] [STEPS]`.

use mgsd_model::bench;

fn main() -> Result<(), mgsd_model::error::Error> {
    let what = std::env::args().nth(1).unwrap_or_else(|| "all".into());
    let steps = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(10);
    let wanted = |name: &str| what == "all" || what == name;
    if wanted("train") {
        let (mean, best) = bench::train(steps)?;
        println!("train.8x256 {mean:.0} tokens/s (best {best:.0})");
    }
    if wanted("decode") {
        println!("decode.16 {:.0} tokens/s", bench::decode(16)?);
    }
    if wanted("nano") {
        for pictures in [0, 20, 40] {
            let (mean, best) = bench::train_nano(steps, pictures)?;
            println!("nano.train.{pictures}_pictures {mean:.0} tokens/s (best {best:.0})");
        }
        let model = mgsd_model::model::Qwen3Vl::init(&bench::nano_config(), 0);
        println!("nano.decode.64 {:.0} tokens/s", bench::decode_with(&model, 64, 64, 64)?);
    }
    Ok(())
}
