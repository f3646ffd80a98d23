//! The client over a model in this process, on a tiny random checkpoint.

use std::path::{Path, PathBuf};

use mgsd_eval::client::{Answer, Client, LocalClient, Message, Picture, Request};
use mgsd_eval::several::Several;
use mgsd_model::image::PixelLimits;
use mgsd_tasks::RgbImage;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../mgsd-model/tests/data/tiny-qwen3vl")
}

fn request(question: &str, picture: Picture) -> Request {
    let messages = vec![Message::user(question, &[picture])];
    Request { messages, max_new_tokens: 6, temperature: 0.0, top_p: 1.0, seed: 0 }
}

fn answers(client: &mut dyn Client, requests: &[Request]) -> Vec<Answer> {
    let mut answers = vec![Answer::default(); requests.len()];
    let mut seen = 0;
    client
        .answer(requests, &mut |index, answer| {
            seen += 1;
            answers[index] = answer;
            Ok(())
        })
        .expect("answers");
    assert_eq!(seen, requests.len());
    answers
}

#[test]
fn a_batch_answers_as_each_request_alone_and_a_broken_picture_fails_alone() {
    let mut client =
        LocalClient::open(&folder(), None, PixelLimits::default(), 2, Default::default()).expect("tiny model");
    let picture = |shade: u8| Picture::drawn(move || Ok(RgbImage::filled(64, 64, [shade, 90, 200])));
    let mut requests = vec![
        request("<image>what is this?", picture(10)),
        request("which colour?", picture(10)),
        request("<image>and a longer question about the other picture", picture(250)),
        request("<image>", Picture::File("no-such-picture.png".into())),
    ];
    let together = answers(&mut client, &requests);
    let message = together[3].error.clone().expect("a missing picture is an error");
    assert!(message.contains("no-such-picture.png"), "{message}");
    requests.pop();
    for (request, expected) in requests.iter().zip(&together) {
        assert_eq!(expected.error, None);
        assert!(expected.tokens.is_some_and(|tokens| (1..=6).contains(&tokens)));
        assert_eq!(&answers(&mut client, std::slice::from_ref(request))[0], expected);
    }
}

#[test]
fn several_devices_answer_as_one_does() {
    let open =
        || LocalClient::open(&folder(), None, PixelLimits::default(), 2, Default::default()).expect("tiny model");
    let shaded = |shade: u8| Picture::drawn(move || Ok(RgbImage::filled(64, 64, [shade, 90, 200])));
    let requests: Vec<Request> = (0..9).map(|shade| request("<image>what is this?", shaded(25 * shade))).collect();
    let alone = answers(&mut open(), &requests);
    assert!(alone.iter().any(|answer| answer != &alone[0]));
    assert_eq!(answers(&mut Several::new(vec![open(), open()], 2), &requests), alone);
}
