//! As much of HTTP/1.1 as misbehaving takes: requests that are written in pieces, answers that are
//! read slowly or not at all. An ordinary client would hide what is wanted here.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// No answer takes as long as this; one that does is lost.
const PATIENCE: Duration = Duration::from_secs(120);

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// A request on its way: one connection, one request.
pub(super) struct Exchange {
    stream: BufReader<TcpStream>,
}

impl Exchange {
    /// Sends a request. `pause`: between pieces of the body of a client that is slow.
    pub(super) fn post(
        address: SocketAddr,
        path: &str,
        body: &[u8],
        pause: Option<Duration>,
    ) -> Result<Self> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: kiln\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        Self::send(address, head.as_bytes(), body, pause)
    }

    pub(super) fn get(address: SocketAddr, path: &str) -> Result<Self> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n");
        Self::send(address, head.as_bytes(), &[], None)
    }

    fn send(
        address: SocketAddr,
        head: &[u8],
        body: &[u8],
        pause: Option<Duration>,
    ) -> Result<Self> {
        let mut stream = TcpStream::connect(address).context("connecting")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(head).context("sending")?;
        match pause {
            None => stream.write_all(body).context("sending")?,
            Some(pause) => {
                for piece in body.chunks(body.len().div_ceil(8).max(1)) {
                    std::thread::sleep(pause);
                    stream.write_all(piece).context("sending")?;
                }
            }
        }
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Reads the answer to its end. `pause`: before each piece, for a client that is slow.
    pub(super) fn answer(mut self, pause: Option<Duration>) -> Result<Answer> {
        let (status, chunked, length) = self.head()?;
        let mut body = Vec::new();
        if chunked {
            while self.chunk(&mut body)? {
                pause.into_iter().for_each(std::thread::sleep);
            }
        } else if let Some(length) = length {
            body.resize(length, 0);
            self.stream.read_exact(&mut body).context("the body")?;
        } else {
            self.stream.read_to_end(&mut body).context("the body")?;
        }
        Ok(Answer { status, body })
    }

    /// Reads so many pieces of the answer, and goes away.
    pub(super) fn leave_after(mut self, pieces: usize) -> Result<u16> {
        let (status, chunked, _) = self.head()?;
        let mut body = Vec::new();
        for _ in 0..pieces {
            if !chunked || !self.chunk(&mut body)? {
                break;
            }
        }
        self.leave();
        Ok(status)
    }

    /// Goes away without a look at the answer.
    pub(super) fn leave(self) {
        // The server may have closed it already.
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }

    fn head(&mut self) -> Result<(u16, bool, Option<usize>)> {
        let first = self.line().context("no answer")?;
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
        let Some(status) = status else {
            bail!("`{first}` is no status line");
        };
        let (mut chunked, mut length) = (false, None);
        loop {
            let line = self.line().context("the header")?.to_ascii_lowercase();
            match line.split_once(':') {
                None => return Ok((status, chunked, length)),
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(("content-length", value)) => length = value.trim().parse().ok(),
                Some(_) => {}
            }
        }
    }

    /// Whether there was one.
    fn chunk(&mut self, body: &mut Vec<u8>) -> Result<bool> {
        let size = self.line().context("a chunk's size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
        let from = body.len();
        body.resize(from + size, 0);
        self.stream
            .read_exact(&mut body[from..])
            .context("a chunk")?;
        self.line().context("a chunk's end")?;
        Ok(size > 0)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end().to_owned())
    }
}
