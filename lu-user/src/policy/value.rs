//! Values of a policy's file: ranges, sizes, patterns, names of errnos.

use std::fmt;

use bytesize::ByteSize;
use nix::errno::Errno;
use serde::Serialize;

/// The longest name of a session, in bytes.
pub const NAME_MOST: usize = lu_common::uapi::sessions::NAME_LEN - 1;

/// The largest size: a file's offsets are signed.
const SIZE_MOST: u64 = i64::MAX as u64;

/// Numbers from one to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Interval {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// What is wrong with a value, and what to do.
pub(super) type Wrong = (String, String);

impl Interval {
    /// One number alone.
    #[must_use]
    pub const fn only(number: u64) -> Self {
        Self {
            first: number,
            last: number,
        }
    }

    /// Whether it has this number.
    #[must_use]
    pub const fn contains(self, number: u64) -> bool {
        self.first <= number && number <= self.last
    }

    /// A range as text, of numbers that are read by `number` and at most `most`. One number alone is a range too.
    pub(super) fn parse(
        text: &str,
        most: u64,
        number: impl Fn(&str) -> Result<u64, Wrong>,
    ) -> Result<Self, Wrong> {
        let text = text.trim();
        let range = match text.split_once("..") {
            None => Self::only(number(text)?),
            Some(("", "")) => {
                return Err((
                    "this range has everything in it, and asks for nothing".to_owned(),
                    "leave the condition out".to_owned(),
                ));
            }
            Some((first, "")) => Self {
                first: number(first.trim())?,
                last: most,
            },
            Some((first, last)) => {
                let Some(last) = last.strip_prefix('=') else {
                    return Err((
                        format!("in {text} it is not clear whether the end is included"),
                        format!("ranges have their end in them: {first}..={last}"),
                    ));
                };
                Self {
                    first: match first.trim() {
                        "" => 0,
                        first => number(first)?,
                    },
                    last: number(last.trim())?,
                }
            }
        };
        if range.first > range.last {
            return Err((
                format!("the range {text} is empty: nothing is ever in it"),
                "write the smaller number first".to_owned(),
            ));
        }
        Ok(range)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (first, last) if first == last => write!(f, "{first}"),
            (0, last) => write!(f, "..={last}"),
            (first, u64::MAX) => write!(f, "{first}.."),
            (first, last) => write!(f, "{first}..={last}"),
        }
    }
}

/// A number up to `most`, decimal or with 0x.
pub(super) fn number(text: &str, most: u64) -> Result<u64, Wrong> {
    let digits = text.replace('_', "");
    let parsed = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    match parsed {
        Ok(number) if number <= most => Ok(number),
        _ => Err((
            format!("`{text}` is no number from 0 to {most}"),
            "write numbers like 7 or 0x2a, and ranges like 0..=15, ..=15 or 100..".to_owned(),
        )),
    }
}

/// A size, in bytes.
pub(super) fn size(text: &str) -> Result<u64, Wrong> {
    match text.parse::<ByteSize>() {
        Ok(size) if size.as_u64() <= SIZE_MOST => Ok(size.as_u64()),
        Ok(_) => Err((
            format!("the size {text} is impossible: no file has over 8EiB"),
            "write a smaller one, like 16GiB".to_owned(),
        )),
        Err(_) => Err((
            format!("`{text}` is no size"),
            "write sizes like 4096, 64MiB or 16GiB".to_owned(),
        )),
    }
}

/// A range of sizes.
pub(super) fn sizes(text: &str) -> Result<Interval, Wrong> {
    if !text.contains("..") {
        let size = size(text)?;
        return Err((
            format!("this is one size alone, {size} bytes, and not what is below it"),
            format!("write \"..={text}\" for at most that, \"{text}..={text}\" for exactly that"),
        ));
    }
    Interval::parse(text, u64::MAX, size)
}

/// The number of an errno.
pub(super) fn errno(name: &str) -> Result<u8, Wrong> {
    (1..=u8::MAX)
        .find(|number| match Errno::from_raw(i32::from(*number)) {
            Errno::UnknownErrno => false,
            known => format!("{known:?}") == name,
        })
        .ok_or_else(|| {
            (
                format!("`{name}` is no errno"),
                "write its name in capitals, like EPERM, EACCES, EBUSY or EDQUOT".to_owned(),
            )
        })
}

/// A pattern for names: what they begin with, and end with; exact where there was no `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern {
    /// What it begins with; the whole where it is exact.
    pub prefix: String,
    /// What it ends with, after anything; `None`: it is exact.
    pub suffix: Option<String>,
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        if text != "*" {
            session_name(&text.replacen('*', "", 1))?;
        }
        let (prefix, suffix) = match text.split_once('*') {
            None => (text, None),
            Some((_, suffix)) if suffix.contains('*') => {
                return Err((
                    format!("`{text}` has more than one `*`"),
                    "a pattern has at most one; write a list of patterns, or several rules"
                        .to_owned(),
                ));
            }
            Some((prefix, suffix)) => (prefix, Some(suffix)),
        };
        Ok(Self {
            prefix: prefix.to_owned(),
            suffix: suffix.map(str::to_owned),
        })
    }

    /// Whether every name that `other` matches is matched by this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (&self.suffix, &other.suffix) {
            (None, None) => self == other,
            (None, Some(_)) => false,
            (Some(suffix), None) => {
                other.prefix.len() >= self.prefix.len() + suffix.len()
                    && other.prefix.starts_with(&self.prefix)
                    && other.prefix.ends_with(suffix)
            }
            (Some(suffix), Some(others)) => {
                other.prefix.starts_with(&self.prefix) && others.ends_with(suffix)
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.suffix {
            None => f.write_str(&self.prefix),
            Some(suffix) => write!(f, "{}*{suffix}", self.prefix),
        }
    }
}

/// Whether a session can have this name.
pub(super) fn session_name(text: &str) -> Result<(), Wrong> {
    let length = text.len();
    if text.is_empty() {
        Err((
            "no session has an empty name: this never matches".to_owned(),
            "write a name, or \"*\" for any".to_owned(),
        ))
    } else if length > NAME_MOST {
        Err((
            format!(
                "this has {length} bytes, and a session's name at most {NAME_MOST}: it never matches"
            ),
            "write a shorter one, or a beginning and `*`".to_owned(),
        ))
    } else if text.contains('\0') {
        Err((
            "a session's name ends at its first NUL: this never matches".to_owned(),
            "leave the NUL out".to_owned(),
        ))
    } else {
        Ok(())
    }
}
