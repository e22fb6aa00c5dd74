//! Server-sent events: an answer while it comes. Whatever is there already goes out in one piece,
//! so that a thousand streams are not a thousand writes a token.

use crate::openai::ApiError;
use crate::openai::run::{At, Run};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{Stream, unfold};
use serde::Serialize;
use std::convert::Infallible;

/// What one kind of answer writes.
pub(crate) trait Chunks: Send + 'static {
    /// Before the first event.
    fn start(&mut self, run: &Run, out: &mut Writer);
    /// For an event.
    fn event(&mut self, event: At, run: &Run, out: &mut Writer);
    /// Behind the last event.
    fn end(&mut self, run: &Run, out: &mut Writer);
}

/// Collects events of the stream.
#[derive(Default)]
pub(crate) struct Writer(BytesMut);

impl Writer {
    /// An event with JSON in it.
    pub(crate) fn data(&mut self, body: &impl Serialize) {
        self.0.put_slice(b"data: ");
        // Our own types always serialise; half an event must not go out if one should not.
        let start = self.0.len();
        if serde_json::to_writer((&mut self.0).writer(), body).is_err() {
            self.0.truncate(start);
            self.0.put_slice(b"{}");
        }
        self.0.put_slice(b"\n\n");
    }

    fn done(&mut self) {
        self.0.put_slice(b"data: [DONE]\n\n");
    }
}

/// The most events that go out in one piece.
const AT_ONCE: usize = 64;

enum State<C> {
    Start(Run, C),
    Going(Run, C),
    Over,
}

/// The body of a streamed answer. Dropping it cancels the request.
pub(crate) fn stream<C: Chunks>(
    run: Run,
    chunks: C,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    unfold(State::Start(run, chunks), |state| async move {
        let mut out = Writer::default();
        let next = match state {
            State::Start(run, mut chunks) => {
                chunks.start(&run, &mut out);
                State::Going(run, chunks)
            }
            State::Going(run, chunks) => go_on(run, chunks, &mut out).await,
            State::Over => return None,
        };
        Some((Ok(out.0.freeze()), next))
    })
}

/// Waits until there is something to send.
async fn go_on<C: Chunks>(mut run: Run, mut chunks: C, out: &mut Writer) -> State<C> {
    loop {
        let mut event = run.next().await;
        for taken in 1.. {
            match event {
                Some(Ok(event)) => chunks.event(event, &run, out),
                Some(Err(error)) => return fail(&error, out),
                None => {
                    chunks.end(&run, out);
                    out.done();
                    return State::Over;
                }
            }
            if taken == AT_ONCE {
                break;
            }
            event = match run.ready() {
                Some(event) => Some(event),
                None => break,
            };
        }
        if !out.0.is_empty() {
            return State::Going(run, chunks);
        }
    }
}

/// The status went out long ago: the error is the last event but one.
fn fail<C>(error: &ApiError, out: &mut Writer) -> State<C> {
    out.data(&error.body());
    out.done();
    State::Over
}
