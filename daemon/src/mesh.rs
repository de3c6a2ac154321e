//! Messages between executors.
//!
//! Every pair of executors, an executor with itself included, has an [`Inbox`] of its own, so messages from one
//! executor to another arrive in the order in which they were sent, and none is lost while both live. Sending never
//! waits. It may refuse, and says so at once with the message in hand: the caller answers that it is overloaded.
//!
//! ```text
//!            to 0      to 1      to 2
//!  from 0  [inbox]   [inbox]   [inbox]     a row is what one executor sends into
//!  from 1  [inbox]   [inbox]   [inbox]     a column is what one executor receives from
//! ```
//!
//! Two kinds of messages share an inbox, because their order matters: a new message, which is refused when
//! `messages_max` wait, and the answer to a message that was received, which always goes through. An answer that could
//! be refused would leave its request open for ever; answers are bounded by the requests that the other side has
//! accepted, and `answers_max` is the assertion of that.

use crate::{
    inbox::{Inbox, PushError},
    stall_guard::Pulse,
};
use std::{cell::RefCell, collections::VecDeque, fmt, future::poll_fn, sync::Arc, task::Poll};

/// The bounds of one pair of executors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshLimits {
    /// Waiting messages at which a further one is refused.
    pub messages_max: usize,
    /// Waiting messages and answers together that are never reached unless there is a bug.
    pub answers_max: usize,
}

impl Default for MeshLimits {
    fn default() -> Self {
        Self { messages_max: 8_192, answers_max: 1 << 20 }
    }
}

/// All inboxes of the mesh; made once, before the executors, each of which then takes its place.
pub struct MeshBuilder<T> {
    /// `inboxes[from][to]`.
    inboxes: Vec<Vec<Inbox<T>>>,
    limits: MeshLimits,
}

impl<T> fmt::Debug for MeshBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshBuilder").field("executors", &self.inboxes.len()).field("limits", &self.limits).finish()
    }
}

impl<T: Send + 'static> MeshBuilder<T> {
    /// A mesh of as many executors as there are pulses.
    pub fn new(pulses: &[Arc<Pulse>], limits: MeshLimits) -> Self {
        assert!(!pulses.is_empty(), "a mesh has at least one executor");
        assert!(limits.answers_max >= limits.messages_max, "answers must fit where messages do");
        let row = || pulses.iter().map(|pulse| Inbox::new(limits.messages_max, Arc::clone(pulse))).collect();
        Self { inboxes: (0..pulses.len()).map(|_| row()).collect(), limits }
    }

    /// The place of one executor. Each executor takes its own once; the place stays on its thread.
    pub fn join(&self, executor: usize) -> Mesh<T> {
        Mesh {
            executor,
            outgoing: self.inboxes[executor].clone(),
            incoming: self.inboxes.iter().map(|row| row[executor].clone()).collect(),
            received: RefCell::new(VecDeque::new()),
            limits: self.limits,
        }
    }
}

/// One executor's place in the mesh.
pub struct Mesh<T> {
    executor: usize,
    outgoing: Vec<Inbox<T>>,
    incoming: Vec<Inbox<T>>,
    /// The buffer that an inbox is emptied into; kept for its capacity.
    received: RefCell<VecDeque<T>>,
    limits: MeshLimits,
}

impl<T> fmt::Debug for Mesh<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("executor", &self.executor).field("executors", &self.outgoing.len()).finish()
    }
}

impl<T: Send + 'static> Mesh<T> {
    /// The executor whose place this is.
    pub fn executor(&self) -> usize {
        self.executor
    }

    /// How many executors there are.
    pub fn executors(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends a new message, or gives it back if too many wait there or the mesh is closed. Never waits.
    pub fn try_send(&self, to: usize, message: T) -> Result<(), T> {
        self.outgoing[to].try_push(message).map_err(PushError::into_inner)
    }

    /// Sends the answer to a message that was received from `to`. It is given back only if the mesh is closed.
    ///
    /// # Panics
    /// If `answers_max` messages wait there: somebody sends answers to nothing.
    pub fn answer(&self, to: usize, answer: T) -> Result<(), T> {
        match self.outgoing[to].push_up_to(answer, self.limits.answers_max) {
            Ok(()) => Ok(()),
            Err(PushError::Closed(answer)) => Err(answer),
            Err(PushError::Full(_)) => panic!("{} answers wait for executor {to}", self.limits.answers_max),
        }
    }

    /// Messages that wait for executor `to`.
    pub fn waiting(&self, to: usize) -> usize {
        self.outgoing[to].len()
    }

    /// Waits for messages and gives all that wait to `take`, each with the executor that sent it, in the order of
    /// sending per sender. False once every executor has closed its side and everything has been received.
    ///
    /// One task per executor receives. `take` may send.
    pub async fn receive(&self, mut take: impl FnMut(usize, T)) -> bool {
        let mut received = std::mem::take(&mut *self.received.borrow_mut());
        let open = poll_fn(|cx| {
            let mut any = false;
            let mut closed = 0;
            for (from, inbox) in self.incoming.iter().enumerate() {
                match inbox.poll_take(cx, &mut received) {
                    Poll::Ready(true) => {
                        any = true;
                        received.drain(..).for_each(|message| take(from, message));
                    }
                    Poll::Ready(false) => closed += 1,
                    Poll::Pending => {}
                }
            }
            match (any, closed == self.incoming.len()) {
                (true, _) => Poll::Ready(true),
                (false, true) => Poll::Ready(false),
                (false, false) => Poll::Pending,
            }
        })
        .await;
        *self.received.borrow_mut() = received;
        open
    }

    /// Says that this executor sends nothing more, answers included. What it has sent is still received.
    pub fn close(&self) {
        self.outgoing.iter().for_each(Inbox::close);
    }
}

#[cfg(test)]
mod tests {
    use super::{Mesh, MeshBuilder, MeshLimits};
    use crate::stall_guard::{GuardTimes, Pulse, StallGuard};
    use glommio::{LocalExecutorBuilder, Placement};
    use std::{
        rc::Rc,
        sync::{Arc, mpsc},
        thread,
        time::Duration,
    };

    /// A number, and whether it is the answer to one.
    #[derive(Debug, PartialEq, Eq)]
    enum Note {
        Ask(u64),
        Reply(u64),
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Runs `body` on as many executors, each with its place in a mesh, under a stall guard. Returns what they return
    /// and how often the guard had to wake one.
    fn on_executors<F, R>(count: usize, limits: MeshLimits, body: F) -> (Vec<R>, u64)
    where
        F: AsyncFn(Rc<Mesh<Note>>) -> R + Send + Sync + 'static,
        R: Send + 'static,
    {
        let pulses: Vec<_> = (0..count).map(|_| Pulse::new()).collect();
        let guard = StallGuard::start(pulses.clone(), GuardTimes::default()).unwrap();
        let mesh = Arc::new(MeshBuilder::new(&pulses, limits));
        let body = Arc::new(body);
        let (tell, told) = mpsc::channel();
        for (executor, pulse) in pulses.into_iter().enumerate() {
            let (mesh, body, tell) = (Arc::clone(&mesh), Arc::clone(&body), tell.clone());
            thread::spawn(move || {
                let local = LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 << 10).make().unwrap();
                let result = local.run(async move {
                    let heartbeat = glommio::spawn_local(pulse.heartbeat());
                    let result = body(Rc::new(mesh.join(executor))).await;
                    heartbeat.cancel().await;
                    result
                });
                tell.send((executor, result)).unwrap();
            });
        }
        let mut results: Vec<_> =
            (0..count).map(|_| told.recv_timeout(PATIENCE).expect("every executor comes to its end")).collect();
        results.sort_by_key(|(executor, _)| *executor);
        (results.into_iter().map(|(_, result)| result).collect(), guard.wakes())
    }

    /// Every executor asks every other one `asks` times with at most `open` questions unanswered, answers what it is
    /// asked, and checks the order of both. Returns how many questions were refused at first.
    async fn converse(mesh: Rc<Mesh<Note>>, asks: u64, open: u64) -> u64 {
        converse_with(mesh, asks, open, true).await
    }

    /// As `converse`; an executor asks itself, too, if `itself`.
    async fn converse_with(mesh: Rc<Mesh<Note>>, asks: u64, open: u64, itself: bool) -> u64 {
        let executors = mesh.executors();
        let met = |to: usize| itself || to != mesh.executor();
        let all: Vec<u64> = (0..executors).map(|to| if met(to) { asks } else { 0 }).collect();
        let mut sent = vec![0_u64; executors];
        let mut answered = vec![0_u64; executors];
        let mut asked = vec![0_u64; executors];
        let mut refused = 0;
        loop {
            for to in 0..executors {
                while sent[to] < all[to] && sent[to] - answered[to] < open {
                    match mesh.try_send(to, Note::Ask(sent[to])) {
                        Ok(()) => sent[to] += 1,
                        Err(note) => {
                            assert_eq!(note, Note::Ask(sent[to]), "a refused message comes back");
                            refused += 1;
                            break;
                        }
                    }
                }
            }
            if answered == all && asked == all {
                break;
            }
            let receiving = mesh.receive(|from, note| match note {
                Note::Ask(number) => {
                    assert_eq!(number, asked[from], "questions from {from} come in order");
                    asked[from] += 1;
                    mesh.answer(from, Note::Reply(number)).unwrap();
                }
                Note::Reply(number) => {
                    assert_eq!(number, answered[from], "answers from {from} come in order");
                    answered[from] += 1;
                }
            });
            // Answers may have filled the inbox that refused, and whoever takes them may have nothing to say: then nothing
            // comes that would end the wait.
            let try_again = async {
                glommio::timer::sleep(Duration::from_millis(1)).await;
                true
            };
            futures_lite::future::or(receiving, try_again).await;
        }
        mesh.close();
        while mesh.receive(|from, note| panic!("{note:?} from {from} is one too many")).await {}
        refused
    }

    #[test]
    fn messages_and_answers_arrive_once_and_in_order() {
        for executors in 1..=3 {
            for open in [1, 7, 500] {
                let asks = if open == 1 { 2_000 } else { 20_000 };
                on_executors(executors, MeshLimits::default(), async move |mesh| converse(mesh, asks, open).await);
            }
        }
    }

    #[test]
    fn a_full_inbox_refuses_messages_and_takes_answers() {
        let limits = MeshLimits { messages_max: 16, answers_max: 4_096 };
        let (refused, _) = on_executors(2, limits, async |mesh| converse(mesh, 20_000, 1_000).await);
        assert!(refused.iter().sum::<u64>() > 0, "1,000 open questions do not fit 16 places");
    }

    #[test]
    fn what_was_sent_before_the_close_is_received_and_later_messages_come_back() {
        let (counts, _) = on_executors(2, MeshLimits::default(), async |mesh| {
            let to = 1 - mesh.executor();
            for number in 0..100 {
                mesh.try_send(to, Note::Ask(number)).unwrap();
            }
            mesh.close();
            assert_eq!(mesh.try_send(to, Note::Ask(100)), Err(Note::Ask(100)));
            assert_eq!(mesh.answer(to, Note::Reply(100)), Err(Note::Reply(100)));
            let mut received = 0;
            while mesh.receive(|_, _| received += 1).await {}
            received
        });
        assert_eq!(counts, [100, 100]);
    }
}
