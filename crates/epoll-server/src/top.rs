//! `epoll-server top`: how a server is doing, live in a terminal, as its admin server tells. What is asked is in
//! `top/sample.rs`, what is shown in `top/view.rs`; here are the terminal and its keys.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use epoll_reactor::{Address, ConnId, Ctx, Handler, Limits, Reactor, Signal};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use sample::Sample;
use view::View;

use crate::SIGNALS;

mod metrics;
mod sample;
mod view;

/// How often the server is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a key may wait for a sample to be looked for, and the other way round.
const GLANCE: Duration = Duration::from_millis(50);

/// Shows the server whose admin server listens at `address`, until somebody presses q or Ctrl-C, or a signal asks for the
/// end.
///
/// # Errors
/// There is no terminal, the address cannot be found, or nobody answers there who is such a server.
pub(crate) fn run(address: &str) -> io::Result<()> {
    let candidates = Address::resolve(address)?;
    let (target, first) = reach(address, &candidates)?;
    if !io::stdout().is_terminal() {
        return Err(io::Error::other("top shows things in a terminal, and standard output is none"));
    }
    // Before any thread is started, as it says itself.
    let mut signals = Reactor::new(Signalled(false), Limits::default())?;
    signals.watch_signals(&SIGNALS)?;
    let (sender, samples) = sync_channel(1);
    thread::Builder::new().name("sampler".to_owned()).spawn(move || ask_again(target, &sender))?;
    let mut view = View::new(address);
    view.update(Ok(first), Instant::now());
    in_terminal(|terminal| show(terminal, &mut view, &samples, &mut signals))
}

/// Whether a signal has asked for the end. It would leave the terminal as it is, had it its way.
struct Signalled(bool);

impl Handler for Signalled {
    type Conn = ();
    type Message = ();

    fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
        input.len()
    }

    fn on_signal(&mut self, _: &mut Ctx, _: Signal) {
        self.0 = true;
    }
}

/// Hands the terminal to `show`, and puts it back behind that, and before a panic is told of.
fn in_terminal(show: impl FnOnce(DefaultTerminal) -> io::Result<()>) -> io::Result<()> {
    let terminal = ratatui::try_init()?;
    let shown = show(terminal);
    let restored = ratatui::try_restore();
    shown.and(restored)
}

/// The first address that answers, with its answer.
fn reach(text: &str, candidates: &[Address]) -> io::Result<(SocketAddr, Sample)> {
    let mut result = Err(io::Error::new(io::ErrorKind::InvalidInput, "no such address"));
    for candidate in candidates {
        let Address::Tcp(target) = candidate else { continue };
        match Sample::take(*target) {
            Ok(sample) => return Ok((*target, sample)),
            Err(error) => result = Err(error),
        }
    }
    result
        .map_err(|error| io::Error::new(error.kind(), format!("no admin server answers at {text}: {error}")))
}

/// Asks until nobody wants to know.
fn ask_again(target: SocketAddr, samples: &SyncSender<io::Result<Sample>>) {
    loop {
        let next = Instant::now() + INTERVAL;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if samples.send(Sample::take(target)).is_err() {
            return;
        }
    }
}

fn show(
    mut terminal: DefaultTerminal,
    view: &mut View,
    samples: &Receiver<io::Result<Sample>>,
    signals: &mut Reactor<Signalled>,
) -> io::Result<()> {
    let mut changed = true;
    let mut drawn = Instant::now();
    loop {
        signals.turn(Some(Duration::ZERO))?;
        if signals.handler().0 {
            return Ok(());
        }
        match samples.try_recv() {
            Ok(sample) => {
                view.update(sample, Instant::now());
                changed = true;
            }
            Err(TryRecvError::Empty) => (),
            Err(TryRecvError::Disconnected) => return Err(io::Error::other("the sampling thread has ended")),
        }
        // Also where nothing has come: it says for how long that has been so.
        if std::mem::take(&mut changed) || drawn.elapsed() >= INTERVAL {
            drawn = Instant::now();
            terminal.draw(|frame| view.draw(frame, drawn))?;
        }
        if event::poll(GLANCE)? {
            match event::read()? {
                Event::Key(key) if ends(key) => return Ok(()),
                Event::Resize(..) => changed = true,
                _ => (),
            }
        }
    }
}

fn ends(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release
        && matches!((key.code, control), (KeyCode::Char('q'), _) | (KeyCode::Char('c'), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "it is run by the next test, in a terminal"]
    fn panics_in_a_terminal() {
        in_terminal(|_| panic!("said so")).unwrap();
    }

    #[test]
    fn a_panic_puts_the_terminal_back_before_it_is_told_of() {
        let program = std::env::current_exe().unwrap();
        let line = format!(
            "exec {} --ignored --nocapture --exact top::tests::panics_in_a_terminal",
            program.display()
        );
        let mut command = std::process::Command::new("script");
        command
            .args(["-q", "-c", &line, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(std::process::Stdio::null());
        let output = command.output().expect("script(1), of util-linux").stdout;
        let output = String::from_utf8_lossy(&output);
        let place = |part: &str| output.find(part).unwrap_or_else(|| panic!("no {part:?} in {output:?}"));
        // xterm's alternate screen.
        assert!(place("\x1b[?1049h") < place("\x1b[?1049l"), "{output:?}");
        assert!(place("\x1b[?1049l") < place("said so"), "{output:?}");
    }

    #[test]
    fn q_and_control_c_end_it_and_no_other_key_does() {
        let key = |code, modifiers| ends(KeyEvent::new(code, modifiers));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE));
        assert!(!key(KeyCode::Esc, KeyModifiers::NONE));
    }
}
