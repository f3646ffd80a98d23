//! Writes the embedded model's `tokenizer.json`: a byte-level vocabulary with one token for each word, coordinate and
//! list of directions that the compact prompts use, so that answers are short. Any other text falls back to bytes.
//!
//! `cargo run --release -p mgsd-model --example nano_tokenizer > assets/nano/tokenizer.json`

use serde_json::{Map, Value, json};

/// What is cut out as one piece before the vocabulary is looked up. A piece outside the vocabulary becomes its bytes.
const PIECES: &str = concat!(
    r"\(\d,\d\)",                                                         // a cell
    r"|\d{1,3}x\d{1,3}",                                                  // a size
    r"|\n?\d\.(?: |\n)",                                                  // an item's number
    r"|: (?:none|(?:up|right|down|left)(?:, (?:up|right|down|left))*)\n", // open directions of a cell
    r"|(?:up|right|down|left)(?:, (?:up|right|down|left))*",              // legal moves
    r"| (?:PICK|DROP)",                                                   // a step of the route
    r"| [UDLR] (?=\()",
    r"|,(?:PICK|DROP|[UDLR])(?=[,<\n])", // the plan of MiniBehaviour
    r"|\n?Route:|\n?<answer>|</answer>|; ",
    r"| ?[a-z]+|[A-Z]+|\n|.",
);

const SPECIAL: [&str; 8] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];

/// Sides of the boards whose cells are one token each.
const LARGEST_SIDE: usize = 8;

fn pieces() -> Vec<String> {
    let words = |list: &str| list.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let mut all = words(
        "user assistant system frozenlake maze minibehaviour plan read reference size start goal shapes none PICK DROP",
    );
    all.extend(words("plan read list find count walls red green blue yellow pink cyan orange grey square disc cross triangle PICK DROP").iter().map(|word| format!(" {word}")));
    all.extend(["; ", "\nRoute:", "Route:", "\n<answer>", "<answer>", "</answer>"].map(String::from));
    all.extend((1..=7).flat_map(|item| [format!("{item}. "), format!("\n{item}. "), format!("\n{item}.\n")]));
    all.extend(["U", "D", "L", "R"].iter().flat_map(|letter| [format!(" {letter} "), format!(",{letter}")]));
    all.extend([",PICK", ",DROP"].map(String::from));
    for set in 0..16 {
        let named: Vec<&str> = ["up", "right", "down", "left"]
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| set >> bit & 1 == 1)
            .map(|(_, word)| word)
            .collect();
        let named = if named.is_empty() { "none".to_string() } else { named.join(", ") };
        all.push(format!(": {named}\n"));
        if named != "none" {
            all.push(named);
        }
    }
    all.extend((2..=LARGEST_SIDE).map(|side| format!("{side}x{side}")));
    all.extend(
        (0..LARGEST_SIDE * LARGEST_SIDE).map(|cell| format!("({},{})", cell / LARGEST_SIDE, cell % LARGEST_SIDE)),
    );
    all
}

/// The printable character that stands for a byte in a byte-level vocabulary (GPT-2's table).
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + rank).unwrap_or('?')
}

fn main() {
    let mut vocabulary = Map::new();
    for byte in 0..=255u8 {
        vocabulary.insert(byte_character(byte).to_string(), json!(vocabulary.len()));
    }
    for piece in pieces() {
        let written: String = piece.bytes().map(byte_character).collect();
        let next = vocabulary.len();
        vocabulary.entry(written).or_insert(json!(next));
    }
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({"id": vocabulary.len() + i, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    eprintln!("{} tokens", vocabulary.len() + added.len());
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                  "vocab": vocabulary, "merges": []}
    });
    println!("{tokenizer:#}");
}
