//! What is wrong with a file, shown at its place.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// At most so many problems of one file are shown.
const SHOWN: usize = 20;

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which bytes of the text.
    pub span: Range<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do; empty where that is plain.
    pub cure: String,
}

impl Problem {
    pub(super) fn new(
        span: Range<usize>,
        what: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            span,
            what: what.into(),
            cure: cure.into(),
        }
    }
}

impl From<toml::de::Error> for Problem {
    fn from(error: toml::de::Error) -> Self {
        // serde says in one sentence what it found and what it wants instead.
        let (what, cure) = match error.message().split_once(", expected ") {
            Some((what, wanted)) => (what.to_owned(), format!("expected {wanted}")),
            None => (error.message().to_owned(), String::new()),
        };
        Self {
            span: error.span().unwrap_or(0..0),
            what,
            cure,
        }
    }
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or is none.
    #[error("{name}: {what}")]
    File {
        /// The file.
        name: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// What it says is wrong.
    #[error(transparent)]
    Refused(Refused),
}

impl Error {
    /// The message for people: with the places, the lines and a cure, in colours or not.
    #[must_use]
    pub fn render(&self, colours: bool) -> String {
        match self {
            Self::File { .. } => format!("error: {self}"),
            Self::Refused(refused) => refused.render(colours),
        }
    }
}

/// A file and what is wrong with it.
#[derive(Debug)]
pub struct Refused {
    /// The file.
    pub name: String,
    /// Its text.
    pub text: String,
    /// What is wrong: at least one, by their place.
    pub problems: Vec<Problem>,
}

impl Refused {
    fn render(&self, colours: bool) -> String {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for problem in self.problems.iter().take(SHOWN) {
            let group = Level::ERROR.primary_title(&*problem.what).element(
                Snippet::source(&*self.text)
                    .path(&*self.name)
                    .annotation(AnnotationKind::Primary.span(self.within(&problem.span))),
            );
            groups.push(if problem.cure.is_empty() {
                group
            } else {
                group.element(Level::HELP.message(&*problem.cure))
            });
        }
        let renderer = if colours {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let mut text = String::new();
        for (at, group) in groups.into_iter().enumerate() {
            if at > 0 {
                text.push_str("\n\n");
            }
            text.push_str(&renderer.render(&[group]));
        }
        if let Some(more @ 1..) = self.problems.len().checked_sub(SHOWN) {
            text = format!("{text}\n\nand {more} more");
        }
        text
    }

    /// The span, within the text and between characters: of what is several lines, the first.
    fn within(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.text.floor_char_boundary(span.start);
        let end = self
            .text
            .ceil_char_boundary(span.end.clamp(start, self.text.len()));
        let line = self.text[start..end].find('\n').unwrap_or(end - start);
        start..start + line
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Refused {}
