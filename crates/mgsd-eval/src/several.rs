//! One model on several devices: clients that share the requests between them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use crate::client::{Answer, Client, Request};
use crate::error::{Error, Result};

/// Clients that answer alike, each on a thread of its own. Whoever is done takes the next share.
pub struct Several<C> {
    clients: Vec<C>,
    share: usize,
}

impl<C: Client + Send> Several<C> {
    /// Up to `share` requests are taken at a time, fewer if that leaves a client without; as many as a client answers side
    /// by side, or more.
    ///
    /// # Panics
    /// Without clients.
    pub fn new(clients: Vec<C>, share: usize) -> Self {
        assert!(!clients.is_empty(), "no clients to share requests between");
        Self { clients, share }
    }
}

impl<C: Client + Send> Client for Several<C> {
    fn name(&self) -> String {
        self.clients[0].name()
    }

    fn answer(&mut self, requests: &[Request], on_answer: &mut dyn FnMut(usize, Answer) -> Result<()>) -> Result<()> {
        let share = self.share.min(requests.len().div_ceil(self.clients.len())).max(1);
        let next = &AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let (sender, answers) = mpsc::channel();
            for client in &mut self.clients {
                let sender = sender.clone();
                scope.spawn(move || {
                    loop {
                        let start = next.fetch_add(share, Ordering::Relaxed).min(requests.len());
                        let taken = &requests[start..(start + share).min(requests.len())];
                        if taken.is_empty() {
                            return;
                        }
                        let name = client.name();
                        let mut send = |index: usize, answer| {
                            // Nobody listens any more once one of the clients, or the listener, has failed.
                            let gone = |_| Error::Client { client: name.clone(), message: "stopped".to_string() };
                            sender.send(Ok((start + index, answer))).map_err(gone)
                        };
                        if let Err(error) = client.answer(taken, &mut send) {
                            let _ = sender.send(Err(error));
                            return;
                        }
                    }
                });
            }
            drop(sender);
            answers.into_iter().try_for_each(|answer: Result<(usize, Answer)>| {
                let (index, answer) = answer?;
                on_answer(index, answer)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its name and the request's seed; fails at one seed.
    struct Echo {
        name: &'static str,
        fails_at: u64,
    }

    impl Client for Echo {
        fn name(&self) -> String {
            self.name.to_string()
        }

        fn answer(
            &mut self,
            requests: &[Request],
            on_answer: &mut dyn FnMut(usize, Answer) -> Result<()>,
        ) -> Result<()> {
            for (index, request) in requests.iter().enumerate().rev() {
                if request.seed == self.fails_at {
                    return Err(Error::Client { client: self.name(), message: "no memory".to_string() });
                }
                on_answer(index, Answer { text: request.seed.to_string(), ..Answer::default() })?;
            }
            Ok(())
        }
    }

    fn requests(count: u64) -> Vec<Request> {
        let request = |seed| Request { messages: Vec::new(), max_new_tokens: 1, temperature: 0.0, top_p: 1.0, seed };
        (0..count).map(request).collect()
    }

    fn echoes(fails_at: u64) -> Several<Echo> {
        Several::new(vec![Echo { name: "a", fails_at }, Echo { name: "b", fails_at }], 3)
    }

    #[test]
    fn every_request_is_answered_once_under_its_own_number() {
        for count in [0, 1, 3, 50] {
            let mut texts = vec![None; count as usize];
            let answered = echoes(u64::MAX).answer(&requests(count), &mut |index, answer| {
                assert_eq!(texts[index].replace(answer.text), None);
                Ok(())
            });
            answered.expect("answers");
            assert!(texts.iter().enumerate().all(|(index, text)| *text == Some(index.to_string())), "{texts:?}");
        }
    }

    #[test]
    fn a_failure_of_one_or_of_the_listener_ends_it_with_that_error() {
        let failed = echoes(20).answer(&requests(50), &mut |_, _| Ok(())).expect_err("one fails");
        assert!(failed.to_string().contains("no memory"), "{failed}");
        let full = || Error::Client { client: "rows".to_string(), message: "disk full".to_string() };
        let failed = echoes(u64::MAX).answer(&requests(50), &mut |_, _| Err(full())).expect_err("the listener fails");
        assert!(failed.to_string().contains("disk full"), "{failed}");
    }
}
