//! Prints the figures of [`mgsd_compute::bench`]: `cargo run --release -p mgsd-compute --example compute [products|attentions|rest]`.

use mgsd_compute::bench;

fn main() {
    let figures = match std::env::args().nth(1).as_deref() {
        Some("products") => bench::products(),
        Some("attentions") => bench::attentions(),
        Some("rest") => bench::rest(),
        _ => bench::all(),
    };
    for figure in figures {
        println!("{:52} {:12.1} {}", figure.name, figure.value, figure.unit);
    }
}
