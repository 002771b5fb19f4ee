//! A handler that records its callbacks, does in each what the test says, and watches over their contract.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use epoll_reactor::{
    CloseReason, CloseStats, ConnId, Ctx, Handler, Readiness, SendOutcome, Signal, Source, SourceId,
    Timestamp,
};

/// A callback that was called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    Open(ConnId),
    Data(ConnId, Vec<u8>),
    Eof(ConnId, Vec<u8>),
    Drain(ConnId),
    Timer(ConnId),
    Shutdown(ConnId),
    Close(ConnId, CloseReason),
    Message(u64),
    Tick,
    Ready(SourceId, Readiness),
    Signal(Signal),
}

impl Call {
    /// For messages: without kilobytes of input.
    pub(crate) fn shortened(&self) -> String {
        let mut text = format!("{self:?}");
        text.truncate(120);
        text
    }
}

type Hook<F> = Option<Box<F>>;
type ConnHook = Hook<dyn FnMut(&mut Ctx, ConnId)>;
type DataHook = dyn FnMut(&mut Ctx, ConnId, &[u8]) -> usize;
type EofHook = dyn FnMut(&mut Ctx, ConnId, &[u8]);
type MessageHook = dyn FnMut(&mut Ctx, u64);
type TickHook = dyn FnMut(&mut Ctx);
type SignalHook = dyn FnMut(&mut Ctx, Signal);
type ReadyHook = dyn FnMut(&mut Ctx, SourceId, &Source<'_>);

/// By default: echo, and the defaults of [`Handler`] for the rest.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) calls: Vec<Call>,
    pub(crate) stats: BTreeMap<ConnId, CloseStats>,
    /// What broke the contract; the harness fails the test for it, since a panic in here might be caught.
    pub(crate) violations: Vec<String>,
    lives: BTreeMap<ConnId, Life>,
    inside: Rc<Cell<bool>>,
    open: ConnHook,
    data: Hook<DataHook>,
    eof: Hook<EofHook>,
    drain: ConnHook,
    timer: ConnHook,
    shutdown: ConnHook,
    close: ConnHook,
    message: Hook<MessageHook>,
    tick: Hook<TickHook>,
    ready: Hook<ReadyHook>,
    signal: Hook<SignalHook>,
}

/// As long as a callback runs, panic or not.
struct Inside(Rc<Cell<bool>>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Life {
    Open,
    Closed,
}

macro_rules! hooks {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        $(pub(crate) fn $name(mut self, hook: impl FnMut($($argument),*) $(-> $result)? + 'static) -> Self {
            self.$name = Some(Box::new(hook));
            self
        })*
    };
}

impl Script {
    hooks! {
        open(&mut Ctx, ConnId);
        data(&mut Ctx, ConnId, &[u8]) -> usize;
        eof(&mut Ctx, ConnId, &[u8]);
        drain(&mut Ctx, ConnId);
        timer(&mut Ctx, ConnId);
        shutdown(&mut Ctx, ConnId);
        close(&mut Ctx, ConnId);
        message(&mut Ctx, u64);
        tick(&mut Ctx);
        ready(&mut Ctx, SourceId, &Source<'_>);
        signal(&mut Ctx, Signal);
    }

    /// The connections opened so far, in that order.
    pub(crate) fn opened(&self) -> Vec<ConnId> {
        self.calls
            .iter()
            .filter_map(|call| if let Call::Open(id) = call { Some(*id) } else { None })
            .collect()
    }

    /// Why `id` was closed, if it was.
    pub(crate) fn closed(&self, id: ConnId) -> Option<CloseReason> {
        self.calls.iter().find_map(|call| match call {
            Call::Close(closed, reason) if *closed == id => Some(*reason),
            _ => None,
        })
    }

    /// All inputs of `id`, one for each call of `on_data`.
    pub(crate) fn inputs(&self, id: ConnId) -> Vec<&[u8]> {
        self.calls
            .iter()
            .filter_map(|call| match call {
                Call::Data(of, input) if *of == id => Some(input.as_slice()),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn count(&self, matches: impl Fn(&Call) -> bool) -> usize {
        self.calls.iter().filter(|call| matches(call)).count()
    }

    pub(crate) fn messages(&self) -> Vec<u64> {
        self.calls
            .iter()
            .filter_map(|call| if let Call::Message(it) = call { Some(*it) } else { None })
            .collect()
    }

    #[must_use]
    fn begin(&mut self, ctx: &Ctx, id: Option<ConnId>, call: Call) -> Inside {
        let mut wrong = |what: &str| self.violations.push(format!("{}: {what}", call.shortened()));
        if self.inside.replace(true) {
            wrong("inside another callback");
        }
        if let Some(id) = id {
            let life = self.lives.get(&id).copied();
            match (&call, life) {
                (Call::Open(_), None) => {
                    self.lives.insert(id, Life::Open);
                }
                // None: an outbound connection that was never made.
                (Call::Close(..), Some(Life::Open) | None) => {
                    self.lives.insert(id, Life::Closed);
                }
                (Call::Open(_) | Call::Close(..), Some(_)) => wrong("a second time"),
                (_, Some(Life::Open)) => (),
                (_, None) => wrong("before on_open"),
                (_, Some(Life::Closed)) => wrong("after on_close"),
            }
            if ctx.is_open(id) == matches!(call, Call::Close(..)) {
                wrong("after a close was asked for");
            }
        }
        self.calls.push(call);
        Inside(Rc::clone(&self.inside))
    }

    fn run_hook(
        &mut self,
        ctx: &mut Ctx,
        id: ConnId,
        which: fn(&mut Self) -> &mut ConnHook,
        default: fn(&mut Ctx, ConnId),
    ) {
        match which(self) {
            Some(hook) => hook(ctx, id),
            None => default(ctx, id),
        }
    }
}

impl Handler for Script {
    type Conn = u32;
    type Message = u64;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut u32) {
        let _inside = self.begin(ctx, Some(id), Call::Open(id));
        if *conn != 0 {
            self.violations.push(format!("{id} was given the state of another"));
        }
        *conn = 1;
        self.run_hook(ctx, id, |it| &mut it.open, |_, _| ());
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut u32, input: &[u8]) -> usize {
        let _inside = self.begin(ctx, Some(id), Call::Data(id, input.to_vec()));
        match &mut self.data {
            Some(hook) => hook(ctx, id, input),
            None => {
                let outcome: SendOutcome<&[u8]> = ctx.send(id, input);
                if !outcome.is_accepted() {
                    self.violations.push(format!("echo refused: {outcome:?}"));
                }
                input.len()
            }
        }
    }

    fn on_eof(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut u32, unconsumed: &[u8]) {
        let _inside = self.begin(ctx, Some(id), Call::Eof(id, unconsumed.to_vec()));
        match &mut self.eof {
            Some(hook) => hook(ctx, id, unconsumed),
            None => ctx.close_after_flush(id),
        }
    }

    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut u32) {
        let _inside = self.begin(ctx, Some(id), Call::Drain(id));
        self.run_hook(ctx, id, |it| &mut it.drain, |_, _| ());
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut u32) {
        let _inside = self.begin(ctx, Some(id), Call::Timer(id));
        self.run_hook(ctx, id, |it| &mut it.timer, |_, _| ());
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut u32, _: Timestamp) {
        let _inside = self.begin(ctx, Some(id), Call::Shutdown(id));
        self.run_hook(ctx, id, |it| &mut it.shutdown, Ctx::close_after_flush);
    }

    fn on_close(&mut self, ctx: &mut Ctx, id: ConnId, _: u32, reason: CloseReason, stats: &CloseStats) {
        let _inside = self.begin(ctx, Some(id), Call::Close(id, reason));
        self.stats.insert(id, *stats);
        self.run_hook(ctx, id, |it| &mut it.close, |_, _| ());
    }

    fn on_message(&mut self, ctx: &mut Ctx, message: u64) {
        let _inside = self.begin(ctx, None, Call::Message(message));
        if let Some(hook) = &mut self.message {
            hook(ctx, message);
        }
    }

    fn on_tick(&mut self, ctx: &mut Ctx) {
        let _inside = self.begin(ctx, None, Call::Tick);
        if let Some(hook) = &mut self.tick {
            hook(ctx);
        }
    }

    fn on_signal(&mut self, ctx: &mut Ctx, signal: Signal) {
        let _inside = self.begin(ctx, None, Call::Signal(signal));
        if let Some(hook) = &mut self.signal {
            hook(ctx, signal);
        }
    }

    fn on_ready(&mut self, ctx: &mut Ctx, id: SourceId, source: &Source<'_>, readiness: Readiness) {
        let _inside = self.begin(ctx, None, Call::Ready(id, readiness));
        if let Some(hook) = &mut self.ready {
            hook(ctx, id, source);
        }
    }
}
