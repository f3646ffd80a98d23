#[test]
fn speed() {
    let text = format!("kind=\"sft\"\nsteps=1\n[model]\nbase={:?}\nout=\"x\"\n[data]\nimage_size=128\n[data.tasks.frozenlake]\nlevels=[3,4]\nrandom_start_goal=true\n[data.tasks.maze]\nlevels=[3,4]\n[data.tasks.minibehaviour]\nlevels=[4,5]\n[prompts]\nset=\"compact\"\n[images]\nmin_pixels=16384\nmax_pixels=16384\n", std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../mgsd-model/tests/data/tiny-qwen3vl"));
    for kind in ["plan_text", "plan_reference", "read_text", "read_image", "shapes"] {
        let recipe = crate::Recipe::parse("s", &format!("{text}[[data.mix]]\nkind={kind:?}\n"), &[]).unwrap();
        let source = crate::source::Source::open(&recipe).unwrap();
        let t = std::time::Instant::now();
        let mut tokens = 0; let mut max = 0;
        for i in 0..500 { let s = source.sample(crate::source::Part::Train, i).unwrap(); tokens += s.prompt.ids.len(); max = max.max(s.prompt.ids.len()); }
        println!("{kind}: {:.3} ms a sample, {} tokens mean {max} max", t.elapsed().as_secs_f64() * 2.0, tokens / 500);
    }
}
