//! The terminal: taken over, and given back as it was, whatever ends the screen.

use std::io::{self, Stdout, Write as _, stdout};
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{DisableBracketedPaste, EnableBracketedPaste};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode,
};
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};

/// Whether it is taken over: whoever comes first gives it back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// What is drawn on.
pub type Screen = Terminal<CrosstermBackend<Stdout>>;

/// Columns and lines where the terminal does not say: a serial console has no size.
const UNKNOWN: (u16, u16) = (80, 24);

/// Columns and lines; from `COLUMNS` and `LINES` where the terminal does not say.
pub fn size() -> (u16, u16) {
    if let Ok((columns, lines)) = terminal::size()
        && columns > 0
        && lines > 0
    {
        return (columns, lines);
    }
    let said = |name: &str| std::env::var(name).ok()?.parse().ok().filter(|it| *it > 0);
    (
        said("COLUMNS").unwrap_or(UNKNOWN.0),
        said("LINES").unwrap_or(UNKNOWN.1),
    )
}

/// A terminal that is given back when this is dropped.
pub struct Taken {
    screen: Screen,
    size: (u16, u16),
}

impl Taken {
    /// Takes it over.
    pub fn new() -> io::Result<Self> {
        give_back_at_panic();
        let size = size();
        let taken = Self {
            screen: screen(size)?,
            size,
        };
        take()?;
        Ok(taken)
    }

    /// What is drawn on, of the size that the terminal has now.
    pub fn screen(&mut self, size: (u16, u16)) -> io::Result<&mut Screen> {
        if self.size != size {
            self.begin(size)?;
        }
        Ok(&mut self.screen)
    }

    /// Gives it back while the process is stopped by `stop`, and draws all of it anew afterwards.
    pub fn suspend(&mut self, stop: impl FnOnce()) -> io::Result<()> {
        give_back();
        stop();
        self.resume()
    }

    /// Takes it over again, where somebody else may have had it meanwhile.
    pub fn resume(&mut self) -> io::Result<()> {
        TAKEN.store(false, Ordering::SeqCst);
        take()?;
        self.begin(size())
    }

    /// Begins with nothing on the screen. Where the cursor is is not asked for, as [`Terminal::clear`] does: the
    /// answer would come to whoever reads the keys.
    fn begin(&mut self, size: (u16, u16)) -> io::Result<()> {
        execute!(stdout(), Clear(ClearType::All))?;
        self.size = size;
        self.screen = screen(size)?;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

fn screen(size: (u16, u16)) -> io::Result<Screen> {
    let area = Rect::new(0, 0, size.0, size.1);
    let options = TerminalOptions {
        // Its size is asked for here, and where it has none there is one all the same.
        viewport: Viewport::Fixed(area),
    };
    Terminal::with_options(CrosstermBackend::new(stdout()), options)
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste, Hide)
}

/// Gives it back as it was. What fails here fails because there is no terminal any more.
pub fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(stdout(), Show, DisableBracketedPaste, LeaveAlternateScreen);
        let _ = disable_raw_mode();
        let _ = stdout().flush();
    }
}

/// A panic in any thread gives the terminal back, says what it was on it, and ends the process.
fn give_back_at_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        give_back();
        say(panic);
        // As the runtime ends a process whose main thread panics.
        std::process::exit(101);
    }));
}
