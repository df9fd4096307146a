//! Lets HTTP/2 clients of a Unix socket call the server what they like.
//!
//! gRPC libraries put a socket's path into `:authority` (Go's when it is dialled by path, C++, Python and Java by default), which
//! is no valid authority. hyper's HTTP/2 server resets such a call before a service sees it (hyperium/h2#487). Nothing of this
//! project reads the authority, so it is replaced on the way in, by one of the same length: header compression counts the bytes
//! of what it keeps, and a field that refers to an earlier one means the replaced one. So no table of headers is kept here.

mod hpack;

use hpack::rewrite;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's header.
const FRAME_HEADER: usize = 9;
/// Largest frame that a server takes, in bytes, unless it says otherwise (ours does not).
const MOST_FRAME: usize = 16 << 10;
/// Largest block of headers that is looked at, in bytes; the server refuses larger ones.
const MOST_BLOCK: usize = 64 << 10;
/// Bytes that are read at a time.
const CHUNK: usize = 8 << 10;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A connection whose requests have a valid `:authority`, whatever the client sends.
#[derive(Debug)]
pub struct AnyAuthority<C> {
    connection: C,
    rewriter: Rewriter,
    /// Rewritten, and read up to `.1`.
    ready: (Vec<u8>, usize),
}

impl<C> AnyAuthority<C> {
    /// What is read of `connection` is rewritten.
    pub fn new(connection: C) -> Self {
        Self { connection, rewriter: Rewriter::default(), ready: (Vec::new(), 0) }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for AnyAuthority<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (ready, read) = &mut this.ready;
        while *read == ready.len() {
            // Most connections are quiet for hours.
            *ready = Vec::new();
            *read = 0;
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.connection).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                // What is left of a frame that never came to its end is for the server to judge.
                this.rewriter.finish(ready);
                if ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
            this.rewriter.feed(chunk.filled(), ready);
        }
        let length = buffer.remaining().min(ready.len() - *read);
        buffer.put_slice(&ready[*read..*read + length]);
        *read += length;
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

impl<C: tonic::transport::server::Connected> tonic::transport::server::Connected for AnyAuthority<C> {
    type ConnectInfo = C::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.connection.connect_info()
    }
}

/// Follows the frames that a client sends.
#[derive(Debug, Default)]
struct Rewriter {
    state: State,
    /// The preface or frame header that has not come whole, or the frame of headers.
    partial: Vec<u8>,
    block: Option<Block>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Preface,
    FrameHeader,
    /// So many bytes of a frame that is passed on as it is.
    Passing(usize),
    /// A frame with headers, of so many bytes with its own header.
    Collecting(usize),
    /// Something that is not understood: the server says what is wrong with it.
    PassingAll,
}

/// A block of headers, over the frames that it comes in.
#[derive(Debug)]
struct Block {
    /// The first frame's header and priority.
    flags: u8,
    stream: [u8; 4],
    priority: Vec<u8>,
    fields: Vec<u8>,
    /// As they came, for a block that is not understood.
    frames: Vec<u8>,
}

impl Rewriter {
    /// Takes what was read and adds what is to be handed on.
    fn feed(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while !input.is_empty() {
            let wanted = match self.state {
                State::Preface => PREFACE.len(),
                State::FrameHeader => FRAME_HEADER,
                State::Collecting(length) => length,
                State::Passing(length) => {
                    let (passed, rest) = input.split_at(length.min(input.len()));
                    output.extend_from_slice(passed);
                    input = rest;
                    let left = length - passed.len();
                    self.state = if left == 0 { State::FrameHeader } else { State::Passing(left) };
                    continue;
                }
                State::PassingAll => {
                    output.extend_from_slice(input);
                    return;
                }
            };
            let missing = wanted.saturating_sub(self.partial.len()).min(input.len());
            let (taken, rest) = input.split_at(missing);
            self.partial.extend_from_slice(taken);
            input = rest;
            if self.partial.len() == wanted {
                self.step(output);
            }
        }
    }

    /// Hands on what is left when the client has closed its side.
    fn finish(&mut self, output: &mut Vec<u8>) {
        if let Some(block) = self.block.take() {
            output.extend_from_slice(&block.frames);
        }
        output.append(&mut self.partial);
        self.state = State::PassingAll;
    }

    /// What was waited for is there.
    fn step(&mut self, output: &mut Vec<u8>) {
        match self.state {
            State::Preface if self.partial == PREFACE => {
                output.append(&mut self.partial);
                self.state = State::FrameHeader;
            }
            State::FrameHeader => {
                let [a, b, c, kind, flags, ..] = self.partial[..] else { return self.finish(output) };
                let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                let of_block = match &self.block {
                    Some(block) => kind == CONTINUATION && block.stream == self.partial[5..9],
                    None => kind == HEADERS,
                };
                let gathered = self.block.as_ref().map_or(0, |block| block.frames.len());
                if of_block && length <= MOST_FRAME && gathered + length <= MOST_BLOCK {
                    self.state = State::Collecting(FRAME_HEADER + length);
                    if length == 0 {
                        self.frame(flags, output);
                    }
                } else if self.block.is_some() || kind == HEADERS {
                    self.finish(output);
                } else {
                    output.append(&mut self.partial);
                    self.state = if length == 0 { State::FrameHeader } else { State::Passing(length) };
                }
            }
            State::Collecting(_) => self.frame(self.partial[4], output),
            _ => self.finish(output),
        }
    }

    /// A frame of headers is whole.
    fn frame(&mut self, flags: u8, output: &mut Vec<u8>) {
        let frame = std::mem::take(&mut self.partial);
        let payload = &frame[FRAME_HEADER..];
        match &mut self.block {
            Some(block) => {
                block.fields.extend_from_slice(payload);
                block.frames.extend_from_slice(&frame);
            }
            None => match first_frame(flags, payload) {
                Some((priority, fields)) => {
                    let stream = frame[5..9].try_into().unwrap_or_default();
                    let (priority, fields) = (priority.to_vec(), fields.to_vec());
                    self.block = Some(Block { flags, stream, priority, fields, frames: frame });
                }
                None => {
                    self.partial = frame;
                    return self.finish(output);
                }
            },
        }
        self.state = State::FrameHeader;
        if flags & END_HEADERS != 0
            && let Some(block) = self.block.take()
        {
            block.write(output);
        }
    }
}

/// Priority and fields of a first frame; none if it is too short for its own padding.
fn first_frame(flags: u8, payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (padding, rest) = if flags & PADDED != 0 {
        payload.split_first().map(|(n, rest)| (usize::from(*n), rest))?
    } else {
        (0, payload)
    };
    let rest = rest.get(..rest.len().checked_sub(padding)?)?;
    rest.split_at_checked(if flags & PRIORITY != 0 { 5 } else { 0 })
}

impl Block {
    /// The block with another authority, in as many frames as it takes; as it came if it is not understood.
    fn write(&self, output: &mut Vec<u8>) {
        let Some(fields) = rewrite(&self.fields) else {
            output.extend_from_slice(&self.frames);
            return;
        };
        let first = fields.len().min(MOST_FRAME - self.priority.len());
        let (first, rest) = fields.split_at(first);
        let mut frames = vec![(HEADERS, self.flags & !(PADDED | END_HEADERS), self.priority.as_slice(), first)];
        frames.extend(rest.chunks(MOST_FRAME).map(|part| (CONTINUATION, 0, &[][..], part)));
        let last = frames.len() - 1;
        for (index, (kind, flags, priority, part)) in frames.into_iter().enumerate() {
            let length = u32::try_from(priority.len() + part.len()).unwrap_or(0).to_be_bytes();
            output.extend_from_slice(&length[1..]);
            output.extend_from_slice(&[kind, flags | if index == last { END_HEADERS } else { 0 }]);
            output.extend_from_slice(&self.stream);
            output.extend_from_slice(priority);
            output.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    /// What comes out when the input comes in parts of this size.
    fn through(input: &[u8], size: usize) -> Vec<u8> {
        let (mut rewriter, mut output) = (Rewriter::default(), Vec::new());
        input.chunks(size).for_each(|part| rewriter.feed(part, &mut output));
        rewriter.finish(&mut output);
        output
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE.to_vec(), frames.concat()].concat()
    }

    fn literal(first: u8, value: &[u8]) -> Vec<u8> {
        [&[first, u8::try_from(value.len()).unwrap()][..], value].concat()
    }

    #[test]
    fn an_authority_is_replaced_by_one_of_the_same_length_and_nothing_else_is() {
        let method_and_path = [&[0x83, 0x86][..], &literal(0x44, b"/v1beta1.Registration/Register")].concat();
        let fields = |authority: &[u8]| [&method_and_path[..], authority, &[0x80 | 63]].concat();
        let path = b"/var/lib/kubelet/device-plugins/kubelet.sock";
        let coded = [0x41, 0x80 | 8, 0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
        let by_name = [&[0x40, 10][..], b":authority", &[4], b"/a/b"].concat();
        let by_coded_name = [&[0x10, 0x88][..], hpack::AUTHORITY_LITERALS[1].1, &[4], b"/a/b"].concat();
        let name = |first: &[u8]| [first, &literal(4, b"aaaa")[1..]].concat();
        for (authority, replaced) in [
            (literal(0x41, path), literal(0x41, &[b'a'; 44])),
            (literal(0x01, path), literal(0x01, &[b'a'; 44])),
            (literal(0x11, b"%2Ftmp%2Fx.sock"), literal(0x11, &[b'a'; 15])),
            (coded.to_vec(), literal(0x41, &[b'a'; 10])),
            (by_name, name(&[&[0x40, 10][..], b":authority"].concat())),
            (by_coded_name, name(&[&[0x10, 0x88][..], hpack::AUTHORITY_LITERALS[1].1].concat())),
            (literal(0x41, b""), literal(0x41, b"")),
            (literal(0x01, b""), literal(0x01, b"a")),
            (vec![0x81], literal(0x01, b"a")),
            (literal(0x7a, b"/not/an/authority"), literal(0x7a, b"/not/an/authority")),
        ] {
            let others = [frame(4, 0, &[0; 6]), frame(0, 1, &[7; 300])];
            let input =
                connection(&[others[0].clone(), frame(HEADERS, END_HEADERS, &fields(&authority)), others[1].clone()]);
            let right =
                connection(&[others[0].clone(), frame(HEADERS, END_HEADERS, &fields(&replaced)), others[1].clone()]);
            for size in [1, 2, 7, 9, 10, 64, input.len()] {
                assert_eq!(through(&input, size), right, "{authority:x?} by {size}");
            }
        }
    }

    #[test]
    fn a_block_may_come_padded_with_a_priority_and_in_many_frames() {
        let fields = [&[0x83][..], &literal(0x41, b"/a/b")].concat();
        let right = [&[0x83][..], &literal(0x41, b"aaaa")].concat();
        let first = [&[3][..], &[9; 5], &fields[..2], &[0; 3]].concat();
        let input = connection(&[
            frame(HEADERS, PADDED | PRIORITY | 1, &first),
            frame(CONTINUATION, 0, &[]),
            frame(CONTINUATION, END_HEADERS, &fields[2..]),
        ]);
        let whole = [&[9; 5][..], &right].concat();
        assert_eq!(through(&input, 3), connection(&[frame(HEADERS, PRIORITY | END_HEADERS | 1, &whole)]));
        // A large block leaves in frames that the server takes.
        let long = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x9b, 0x01][..], &[b'y'; 20_000]].concat();
        let long = [&long[..], &fields].concat();
        let parts: Vec<_> = long.chunks(MOST_FRAME).collect();
        let input = connection(&[frame(HEADERS, 0, parts[0]), frame(CONTINUATION, END_HEADERS, parts[1])]);
        let output = through(&input, 1000);
        assert_eq!(output.len(), input.len());
        assert!(output.ends_with(&right));
    }

    #[test]
    fn what_is_not_understood_is_the_servers_to_refuse() {
        let fields = literal(0x41, b"/a/b");
        for input in [
            b"GET / HTTP/1.1\r\nhost: here\r\n\r\n".to_vec(),
            PREFACE[..10].to_vec(),
            connection(&[frame(HEADERS, END_HEADERS | PADDED, &[9, 1])]),
            connection(&[frame(HEADERS, END_HEADERS, &[0x41, 200, 1])]),
            connection(&[frame(HEADERS, END_HEADERS, &[0x41, 0x81, 0x18])]),
            connection(&[frame(HEADERS, END_HEADERS, &[0xff, 0xff, 0xff, 0xff, 0xff, 1])]),
            connection(&[frame(HEADERS, 0, &fields), frame(0, 0, &[1])]),
            connection(&[frame(HEADERS, 0, &fields)]),
            connection(&[frame(HEADERS, END_HEADERS, &vec![0; MOST_FRAME + 1])]),
            [connection(&[]), frame(HEADERS, END_HEADERS, &fields)[..10].to_vec()].concat(),
        ] {
            for size in [1, 5, input.len()] {
                assert_eq!(through(&input, size), input);
            }
        }
    }

    #[test]
    fn a_flood_of_continuations_is_not_kept() {
        let mut rewriter = Rewriter::default();
        let mut output = Vec::new();
        rewriter.feed(&connection(&[frame(HEADERS, 0, &[0; 10])]), &mut output);
        for _ in 0..10_000 {
            rewriter.feed(&frame(CONTINUATION, 0, &[0; 1000]), &mut output);
            assert!(rewriter.block.as_ref().map_or(0, |block| block.frames.len()) <= MOST_BLOCK);
            output.clear();
        }
    }
}
