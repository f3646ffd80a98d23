//! Tokenizer, chat template, prompts, labels and position ids against stored results of transformers.

mod io_common;

use std::collections::BTreeMap;

use io_common::{copy_of, data, json};
use mgsd_model::{
    chat::{ChatTemplate, Content, GenerationPrompt, Message, Part},
    config::Config,
    image::{ImageSource, PixelLimits},
    patches::Grid,
    positions::position_ids,
    processor::Processor,
    tokenizer::Tokenizer,
    weights::{Array, read_arrays},
};

const CASES: [&str; 6] =
    ["case1_text", "case2_image", "case2_image_untied", "case3_two_images", "case4_leftpad", "case5_mixed"];
const MODEL_LIMITS: PixelLimits = PixelLimits { min_pixels: Some(1024), max_pixels: Some(262_144) };

/// One row of a stored case.
struct Row {
    name: String,
    model: &'static str,
    text: String,
    images: Vec<String>,
    ids: Vec<u32>,
    positions: Vec<[u32; 3]>,
    rope_delta: i64,
    grids: Vec<Grid>,
    /// Samples of all images of the row, one after the other.
    pixel_values: Vec<f32>,
}

fn whole(arrays: &BTreeMap<String, Array>, name: &str) -> Vec<i64> {
    arrays.get(name).map_or(Vec::new(), |array| array.as_i64().unwrap().to_vec())
}

/// The rows of a case without their padding.
fn rows(case: &str) -> Vec<Row> {
    let stored = json(&format!("fixtures/{case}.json"));
    let arrays = read_arrays(&data(&format!("fixtures/{case}.safetensors"))).unwrap();
    let texts = stored["texts"].as_array().unwrap();
    let names: Vec<String> =
        stored["images"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().into()).collect();
    let mask = whole(&arrays, "in.attention_mask");
    let (ids, positions) = (whole(&arrays, "in.input_ids"), whole(&arrays, "position_ids"));
    let deltas = whole(&arrays, "rope_deltas");
    let grids = whole(&arrays, "in.image_grid_thw");
    let pixels = arrays.get("in.pixel_values").map_or(&[][..], |array| array.as_f32().unwrap());
    let (length, all) = (ids.len() / texts.len(), ids.len());
    let (mut image, mut pixel) = (0, 0);
    let mut out = Vec::new();
    for (row, text) in texts.iter().enumerate() {
        let text = text.as_str().unwrap().to_string();
        let kept: Vec<usize> = (row * length..(row + 1) * length).filter(|&at| mask[at] == 1).collect();
        let count = text.matches("<|image_pad|>").count();
        let own: Vec<Grid> = grids[image * 3..(image + count) * 3]
            .chunks(3)
            .map(|grid| Grid { t: grid[0] as usize, h: grid[1] as usize, w: grid[2] as usize })
            .collect();
        let samples = own.iter().map(Grid::patches).sum::<usize>() * 1536;
        out.push(Row {
            name: format!("{case} row {row}"),
            model: if case.ends_with("untied") { "tiny-qwen3vl-untied" } else { "tiny-qwen3vl" },
            images: names[image..image + count].to_vec(),
            ids: kept.iter().map(|&at| ids[at] as u32).collect(),
            positions: kept.iter().map(|&at| [0, 1, 2].map(|axis| positions[axis * all + at] as u32)).collect(),
            rope_delta: deltas[row],
            pixel_values: pixels[pixel..pixel + samples].to_vec(),
            grids: own,
            text,
        });
        image += count;
        pixel += samples;
    }
    assert_eq!((image, pixel), (names.len(), pixels.len()), "{case}: all images belong to a row");
    out
}

/// The messages that a rendered text came from.
fn messages(text: &str, images: &[String]) -> Vec<Message> {
    let mut images = images.iter();
    let turns = text.split("<|im_start|>").skip(1).map(|turn| turn.split_once('\n').unwrap());
    let whole = turns.filter_map(|(role, said)| Some((role, said.split_once("<|im_end|>")?.0)));
    let message = |(role, said): (&str, &str)| {
        let mut parts = Vec::new();
        for (index, piece) in said.split("<|vision_start|><|image_pad|><|vision_end|>").enumerate() {
            if index > 0 {
                let path = data(&format!("fixtures/images/{}.png", images.next().unwrap()));
                parts.push(Part::Image(ImageSource::Path(path)));
            }
            if !piece.is_empty() {
                parts.push(Part::Text(piece.into()));
            }
        }
        match parts.as_slice() {
            [Part::Text(text)] => Message::text(role, text.as_str()),
            _ => Message::parts(role, parts),
        }
    };
    whole.map(message).collect()
}

#[test]
fn messages_become_the_stored_texts_tokens_grids_and_pixel_values() {
    let mut compared = 0;
    for row in CASES.into_iter().flat_map(rows) {
        let processor = Processor::open(&data(row.model), MODEL_LIMITS).unwrap();
        let messages = messages(&row.text, &row.images);
        assert_eq!(processor.template.render(&messages, GenerationPrompt::Add).unwrap(), row.text, "{}", row.name);
        let prompt = processor.prompt(&messages).unwrap();
        assert_eq!(prompt.ids, row.ids, "{}", row.name);
        assert_eq!(prompt.grids(), row.grids, "{}", row.name);
        let values = prompt.images.iter().flat_map(|image| &image.pixel_values);
        // The torchvision processor made the stored values; where it resizes, it may be off by two byte levels.
        let tolerance = if row.images.iter().any(|name| name == "m_70x50") { 2.01 / 127.5 } else { 2e-7 };
        for (at, (got, wanted)) in values.zip(&row.pixel_values).enumerate() {
            assert!((got - wanted).abs() <= tolerance, "{}: value {at} is {got}, stored {wanted}", row.name);
        }
        compared += row.pixel_values.len();
    }
    assert!(compared > 300_000, "{compared}");
}

#[test]
fn position_ids_and_rope_deltas_are_the_stored_ones() {
    let config = Config::open(&data("tiny-qwen3vl")).unwrap();
    for row in CASES.into_iter().flat_map(rows) {
        // A batch without any image counts through its padding and stores no delta of its own: all are 0.
        let (positions, delta) = position_ids(&row.ids, &row.grids, &config).unwrap();
        assert_eq!(positions, row.positions, "{}", row.name);
        assert_eq!(delta, row.rope_delta, "{}", row.name);
    }
}

#[test]
fn image_tokens_that_do_not_fit_the_images_are_refused() {
    let config = Config::open(&data("tiny-qwen3vl")).unwrap();
    let image = config.image_token_id;
    let grid = Grid { t: 1, h: 4, w: 4 };
    for (ids, grids) in [
        (vec![1, image, image, image, 2], vec![grid]),
        (vec![1, image, image, image, image, 2], vec![]),
        (vec![1, 2], vec![grid]),
        (vec![1, image, image, image, image, image, image, image, image], vec![grid, grid]),
    ] {
        assert!(position_ids(&ids, &grids, &config).is_err(), "{ids:?} {grids:?}");
    }
    let processor = Processor::open(&data("tiny-qwen3vl"), MODEL_LIMITS).unwrap();
    let error = processor.prompt(&[Message::text("user", "what is <|image_pad|>?")]).unwrap_err().to_string();
    assert!(error.contains("1 places for images, but 0 images"), "{error}");
}

#[test]
fn the_labels_of_a_conversation_are_the_stored_ones() {
    let stored = json("training/lora_sft.json");
    let arrays = read_arrays(&data("training/lora_sft.safetensors")).unwrap();
    let (ids, labels) = (whole(&arrays, "in.input_ids"), whole(&arrays, "in.labels"));
    let rows = stored["rows"].as_array().unwrap();
    let processor = Processor::open(&data("tiny-qwen3vl"), MODEL_LIMITS).unwrap();
    let length = ids.len() / rows.len();
    let mut counted = 0;
    for (row, text) in rows.iter().enumerate() {
        let text = text.as_str().unwrap().replace("<|endoftext|>", "");
        let first = text.find("<|image_pad|>").unwrap();
        let after = text.rfind("<|image_pad|>").unwrap();
        let text = format!("{}{}", &text[..first], &text[after..]);
        let images = [stored["images"][row].as_str().unwrap().to_string()];
        let example = processor.example(&messages(&text, &images)).unwrap();
        let n = example.prompt.ids.len();
        let wanted_ids: Vec<u32> = ids[row * length..row * length + n].iter().map(|&id| id as u32).collect();
        assert_eq!(example.prompt.ids, wanted_ids, "row {row}");
        let wanted: Vec<bool> = labels[row * length..row * length + n].iter().map(|&label| label != -100).collect();
        assert_eq!(example.labelled, wanted, "row {row}");
        counted += example.labelled.iter().filter(|&&label| label).count();
    }
    assert_eq!(counted as u64, stored["label_count"].as_u64().unwrap());
}

#[test]
fn every_assistant_turn_is_labelled_and_nothing_else() {
    let processor = Processor::open(&data("tiny-qwen3vl"), MODEL_LIMITS).unwrap();
    let picture = ImageSource::Path(data("fixtures/images/m_64x96.png"));
    let conversation = [
        Message::text("system", "Be brief."),
        Message::parts("user", vec![Part::Text("Look:".into()), Part::Image(picture)]),
        Message::text("assistant", "A board."),
        Message::text("user", "And now?"),
        Message::text("assistant", "\nLeft."),
    ];
    let example = processor.example(&conversation).unwrap();
    let pick = |label: bool| {
        let ids = example.prompt.ids.iter().zip(&example.labelled).filter(|(_, own)| **own == label);
        processor.tokenizer.decode_with_special(&ids.map(|(id, _)| *id).collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(pick(true), "A board.<|im_end|>\n\nLeft.<|im_end|>\n");
    let places = "<|image_pad|>".repeat(6);
    assert_eq!(
        pick(false),
        format!(
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLook:<|vision_start|>{places}<|vision_end|>\
             <|im_end|>\n<|im_start|>assistant\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
        )
    );
    assert_eq!(example.prompt.images.len(), 1);
    // The words to learn begin with the token that a response to the same prompt would begin with.
    let asked = processor.prompt(&conversation[..4]).unwrap();
    assert_eq!(example.prompt.ids[..asked.ids.len()], asked.ids);
    assert!(processor.example(&conversation[..2]).is_err());
}

const SAMPLES: [&str; 6] = [
    "Hello, it's 2026: 12×34 = 408!\r\n\n  Ünïcödé e\u{301} 汉字 🙂🚀",
    "",
    "   ",
    "<|im_start|>user\n<tool_call>x</tool_call><|im_end|>",
    "def f(x):\n\treturn x  # don't\n",
    "wir'LL we'll \u{a0}x\u{3000}y",
];

#[test]
fn vocabulary_and_merges_tokenise_as_tokenizer_json_does() {
    let whole = Tokenizer::open(&data("tiny-qwen3vl-untied")).unwrap();
    let dir = copy_of("tiny-qwen3vl-untied");
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let built = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(built.vocab_size(), whole.vocab_size());
    for text in SAMPLES {
        let ids = whole.encode(text).unwrap();
        assert_eq!(built.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(built.decode(&ids).unwrap(), whole.decode(&ids).unwrap(), "{text:?}");
    }
    let ids: Vec<u32> = (0..whole.vocab_size() as u32).collect();
    assert_eq!(built.decode(&ids).unwrap(), whole.decode(&ids).unwrap());
}

#[test]
fn a_tokenizer_configuration_that_asks_for_more_than_tokenizer_json_has_is_refused() {
    let dir = copy_of("tiny-qwen3vl");
    let path = dir.path().join("tokenizer_config.json");
    let opened = |config: serde_json::Value| {
        std::fs::write(&path, config.to_string()).unwrap();
        Tokenizer::open(dir.path()).map(|_| ()).map_err(|error| error.to_string())
    };
    let added = |id: &str, content: &str| serde_json::json!({ "added_tokens_decoder": { id: { "content": content } } });
    opened(added("552", "<|image_pad|>")).unwrap();
    opened(serde_json::json!({ "add_prefix_space": false, "split_special_tokens": null })).unwrap();
    for (config, field, value) in [
        (added("566", "<|board|>"), "added_tokens_decoder.566", "<|board|>"),
        (added("551", "<|image_pad|>"), "added_tokens_decoder.551", "<|image_pad|>"),
        (serde_json::json!({ "add_prefix_space": true }), "add_prefix_space", "true"),
        (serde_json::json!({ "split_special_tokens": true }), "split_special_tokens", "true"),
    ] {
        let error = opened(config).unwrap_err();
        assert!(error.contains("tokenizer_config.json") && error.contains(field) && error.contains(value), "{error}");
    }
}

#[test]
fn special_tokens_are_recognised_in_text_and_left_out_when_decoding() {
    let tokenizer = Tokenizer::open(&data("tiny-qwen3vl")).unwrap();
    let ids = tokenizer.encode("<|im_start|>a<tool_call><|im_end|>").unwrap();
    assert_eq!(ids.first(), Some(&541));
    assert_eq!(ids.last(), Some(&542));
    assert!(ids.contains(&554));
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(542));
    assert_eq!(tokenizer.token(552).as_deref(), Some("<|image_pad|>"));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a<tool_call>");
    assert_eq!(tokenizer.decode_with_special(&ids).unwrap(), "<|im_start|>a<tool_call><|im_end|>");
}

#[test]
fn streamed_pieces_are_whole_characters_and_add_up_to_the_text() {
    let tokenizer = Tokenizer::open(&data("tiny-qwen3vl")).unwrap();
    for text in SAMPLES {
        let ids = tokenizer.encode(text).unwrap();
        let mut stream = tokenizer.stream();
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        assert_eq!(pieces.concat() + &stream.finish().unwrap(), tokenizer.decode(&ids).unwrap());
    }
    // A character that is never finished comes out as the replacement sign, as without streaming.
    let ids = tokenizer.encode("🙂").unwrap();
    assert!(ids.len() > 1, "the sample needs a character of several tokens");
    let cut: Vec<u32> = [&ids[..1], &tokenizer.encode("ab").unwrap()].concat();
    let mut stream = tokenizer.stream();
    let pieces: Vec<String> = cut.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces[0], "");
    assert_eq!(pieces.concat() + &stream.finish().unwrap(), tokenizer.decode(&cut).unwrap());
}

/// The pieces of a stream, and what is left at its end.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn wrong_bytes_take_no_character_after_them_along() {
    let tokenizer = Tokenizer::open(&data("tiny-qwen3vl")).unwrap();
    let byte = |byte: u8| (0..256).find(|&id| tokenizer.token_bytes(id) == [byte]).unwrap();
    let stray: [&[u8]; 5] =
        [&[0xe2, 0x80], &[0xff], &[0xff, 0xe2], &[0x80, 0xf0, 0x9f], &[0xff, 0xff, 0xff, 0xe2, 0x80]];
    for stray in stray {
        for character in ["é", "汉", "🙂"] {
            let ids: Vec<u32> = [stray, character.as_bytes()].concat().into_iter().map(byte).collect();
            let pieces = streamed(&tokenizer, &ids);
            assert_eq!(pieces.concat(), tokenizer.decode(&ids).unwrap(), "{stray:x?} {character}");
            // The character comes with its last byte, not later.
            assert!(pieces[ids.len() - 1].ends_with(character) && pieces[ids.len()].is_empty(), "{pieces:?}");
        }
    }
}

#[test]
fn pieces_of_any_tokens_add_up_to_the_text_whatever_the_decoder() {
    let dir = copy_of("tiny-qwen3vl");
    let path = dir.path().join("tokenizer.json");
    let mut root: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    root["decoder"] = serde_json::json!({ "type": "Sequence", "decoders": [root["decoder"]] });
    std::fs::write(&path, root.to_string()).unwrap();
    let (plain, nested) = (Tokenizer::open(&data("tiny-qwen3vl")).unwrap(), Tokenizer::open(dir.path()).unwrap());
    let mut state = 1u64;
    for _ in 0..200 {
        let mut id = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Beyond the vocabulary, too: the model may have more rows.
            (state >> 33) as u32 % (plain.vocab_size() as u32 + 3)
        };
        let ids: Vec<u32> = (0..60).map(|_| id()).collect();
        let text = plain.decode(&ids).unwrap();
        assert_eq!(streamed(&plain, &ids).concat(), text, "{ids:?}");
        assert_eq!(streamed(&nested, &ids).concat(), text, "{ids:?}");
    }
}

#[test]
fn the_built_in_template_writes_what_the_folders_template_writes() {
    let dir = copy_of("tiny-qwen3vl");
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let built_in = ChatTemplate::open(dir.path()).unwrap();
    assert_eq!(built_in.origin(), "(built in)");
    for row in CASES.into_iter().flat_map(rows) {
        let messages = messages(&row.text, &row.images);
        assert_eq!(built_in.render(&messages, GenerationPrompt::Add).unwrap(), row.text);
    }
}

#[test]
fn templates_are_found_in_the_tokenizer_configuration_and_may_use_python_methods() {
    let dir = copy_of("tiny-qwen3vl");
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let template = concat!(
        "{%- for m in messages %}\n    {% if loop.first and m.role.startswith('sys') %}\n[{{ m['role'].upper() }}]\n",
        "    {% endif %}\n{{ m.content.strip().split(' ')[-1] }}{{ eos_token }}{% endfor %}{{ [1, {'a': '<b>é'}] | tojson }}\n",
    );
    let config = serde_json::json!({ "chat_template": template, "eos_token": { "content": "<|im_end|>" } });
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let compiled = ChatTemplate::open(dir.path()).unwrap();
    let messages = [Message::text("system", " a b "), Message::text("user", "c d")];
    let text = compiled.render(&messages, GenerationPrompt::Omit).unwrap();
    assert_eq!(text, "[SYSTEM]\nb<|im_end|>d<|im_end|>[1, {\"a\": \"<b>é\"}]");
}

#[test]
fn line_ends_of_a_template_are_those_of_jinja() {
    let written = |source: &str| {
        let template = ChatTemplate::compile(source.into(), "own.jinja".into()).unwrap();
        template.render(&[Message::text("user", "a\r\nb")], GenerationPrompt::Omit).unwrap()
    };
    let plain = "{% for m in messages %}\n<{{ m.role }}>\n{{ m.content }}\n{% endfor %}\nend";
    assert_eq!(written(plain), "<user>\na\r\nb\nend");
    assert_eq!(written(&plain.replace('\n', "\r\n")), written(plain));
    assert_eq!(written(&plain.replace('\n', "\r")), written(plain));
}

#[test]
fn a_template_that_refuses_or_does_not_compile_is_named() {
    let refuse = "{{ raise_exception('only users may speak') }}";
    let template = ChatTemplate::compile(refuse.into(), "own.jinja".into()).unwrap();
    let error = template.render(&[], GenerationPrompt::Omit).unwrap_err().to_string();
    assert!(error.contains("own.jinja") && error.contains("only users may speak"), "{error}");
    let error = ChatTemplate::compile("{% for %}".into(), "own.jinja".into()).err().unwrap().to_string();
    assert!(error.contains("own.jinja") && error.contains("line 1"), "{error}");
}

#[test]
fn openai_messages_are_read_and_wrong_ones_refused_with_their_number() {
    let text = r#"[{"role": "system", "content": "s"}, {"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "m_64x64.png"}}, {"type": "text", "text": "t"},
        {"type": "image", "image": "m_64x96.png"}]}]"#;
    let base = data("fixtures/images");
    let messages = Message::list_from_json(&serde_json::from_str(text).unwrap(), &base).unwrap();
    assert_eq!(messages[0], Message::text("system", "s"));
    let image = |name: &str| Part::Image(ImageSource::Path(base.join(name)));
    let wanted = vec![image("m_64x64.png"), Part::Text("t".into()), image("m_64x96.png")];
    assert_eq!(messages[1].content, Content::Parts(wanted));
    for wrong in [
        r#"{"role": "user"}"#,
        r#"[{"content": "x"}]"#,
        r#"[{"role": "user", "content": 5}]"#,
        r#"[{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}]"#,
        r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]"#,
        r#"[{"role": "assistant", "content": "x", "reasoning_content": "y"}]"#,
        r#"[{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]"#,
    ] {
        let error = Message::list_from_json(&serde_json::from_str(wrong).unwrap(), &base).unwrap_err().to_string();
        assert!(error.contains("expected"), "{error}");
    }
}
