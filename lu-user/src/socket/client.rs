//! The reading end.

use std::io::{self, BufRead as _, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use zerocopy::{FromZeros as _, IntoBytes as _};

use super::{Error, Head, Hello, LONGEST, LONGEST_HELLO, Message};

/// A connection to a `lu run`: an iterator of what it says, which waits for it. It ends behind
/// [`Message::Bye`], or the first error.
pub struct Client<R = UnixStream> {
    hello: Hello,
    from: BufReader<R>,
    is_over: bool,
}

/// Ends a connection from another thread than the one that waits for what comes.
pub struct Hangup(UnixStream);

impl Hangup {
    /// Ends it: whoever waits is told that nothing more comes.
    pub fn hang_up(&self) {
        // One that has ended already is as good.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Client {
    /// Connects to the `lu run` whose socket is at `path`, and hears whether it speaks this version.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).map_err(|error| Error::Connect {
            path: path.into(),
            error,
        })?;
        Self::new(stream)
    }

    /// What ends this connection.
    pub fn hangup(&self) -> io::Result<Hangup> {
        Ok(Hangup(self.from.get_ref().try_clone()?))
    }
}

impl<R: Read> Client<R> {
    /// Reads what a `lu run` says from wherever it comes.
    pub fn new(from: R) -> Result<Self, Error> {
        let mut from = BufReader::with_capacity(1 << 16, from);
        let mut line = Vec::new();
        (&mut from)
            .take(LONGEST_HELLO)
            .read_until(b'\n', &mut line)
            .map_err(Error::Gone)?;
        if line.is_empty() {
            return Err(Error::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        if line.pop() != Some(b'\n') {
            return Err(Error::Senseless("the first line has no end"));
        }
        Ok(Self {
            hello: Hello::parse(&line)?,
            from,
            is_over: false,
        })
    }

    /// Who answers.
    #[must_use]
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    fn read(&mut self) -> Result<Message, Error> {
        loop {
            let mut head = Head::new_zeroed();
            self.from
                .read_exact(head.as_mut_bytes())
                .map_err(Error::Gone)?;
            if head.length > LONGEST {
                return Err(Error::Senseless("a frame that is too long"));
            }
            let mut bytes = vec![0; head.length as usize];
            self.from.read_exact(&mut bytes).map_err(Error::Gone)?;
            // What a later lu says beside can be passed over.
            if let Some(message) = Message::parse(head.kind, &bytes)? {
                return Ok(message);
            }
        }
    }
}

impl<R: Read> Iterator for Client<R> {
    type Item = Result<Message, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let message = self.read();
        self.is_over = matches!(message, Ok(Message::Bye(_)) | Err(_));
        Some(message)
    }
}
