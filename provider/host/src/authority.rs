//! Lets HTTP/2 clients of a Unix socket call the server what they like.
//!
//! gRPC libraries put a socket's path into `:authority` (Go's when it is dialled by path, C++, Python and Java by default), which
//! is no valid authority. hyper's HTTP/2 server resets such a call before a service sees it (hyperium/h2#487). Nothing of this
//! project reads the authority, so it is replaced on the way in, by one of the same length: header compression counts the bytes
//! of what it keeps, and a field that refers to an earlier one means the replaced one. So no table of headers is kept here.

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

/// Index of `:authority` in the static table.
const AUTHORITY: usize = 1;
/// `:authority` as a literal, plain and by Huffman's code.
const AUTHORITY_LITERALS: [(bool, &[u8]); 2] =
    [(false, b":authority"), (true, &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f])];

/// The fields (RFC 7541) with another value for `:authority`; none if they are malformed.
fn rewrite(fields: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader { bytes: fields, position: 0 };
    let mut written = Vec::with_capacity(fields.len());
    while let Some(&first) = fields.get(reader.position) {
        let start = reader.position;
        let prefix = match first {
            // A field of a table; then the size of the table.
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let index = reader.integer(prefix)?;
        // An empty authority is in the static table.
        if first == 0x80 | AUTHORITY as u8 {
            written.push(AUTHORITY as u8);
            write_authority(0, &mut written);
            continue;
        }
        if matches!(first, 0x80.. | 0x20..0x40) {
            written.extend_from_slice(&fields[start..reader.position]);
            continue;
        }
        let is_authority = match index {
            0 => AUTHORITY_LITERALS.contains(&reader.string()?),
            index => index == AUTHORITY,
        };
        written.extend_from_slice(&fields[start..reader.position]);
        let start = reader.position;
        let (coded, value) = reader.string()?;
        // An empty one that the tables keep stays: they must agree to the byte.
        if is_authority && !(value.is_empty() && prefix == 6) {
            let length = if coded { decoded_length(value)? } else { value.len() };
            write_authority(length, &mut written);
        } else {
            written.extend_from_slice(&fields[start..reader.position]);
        }
    }
    Some(written)
}

/// A string of so many letters; one for an empty one, which is no authority either.
fn write_authority(length: usize, output: &mut Vec<u8>) {
    let length = length.max(1);
    if let Some(short) = u8::try_from(length).ok().filter(|length| *length < 0x7f) {
        output.push(short);
    } else {
        output.push(0x7f);
        let mut rest = length - 0x7f;
        while rest >= 0x80 {
            output.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        output.push((rest & 0x7f) as u8);
    }
    output.resize(output.len() + length, b'a');
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// An integer whose first byte has so many bits of it (RFC 7541, 5.1).
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let mask = (1_usize << prefix) - 1;
        let mut value = usize::from(*self.bytes.get(self.position)?) & mask;
        self.position += 1;
        if value < mask {
            return Some(value);
        }
        for shift in [0, 7, 14] {
            let byte = usize::from(*self.bytes.get(self.position)?);
            self.position += 1;
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Whether a string is in Huffman's code, and its bytes.
    fn string(&mut self) -> Option<(bool, &'a [u8])> {
        let coded = *self.bytes.get(self.position)? & 0x80 != 0;
        let length = self.integer(7)?;
        let bytes = self.bytes.get(self.position..self.position.checked_add(length)?)?;
        self.position += length;
        Some((coded, bytes))
    }
}

/// How many octets have so many bits in HPACK's Huffman code (RFC 7541, appendix B). The code is canonical, so these are all
/// that is needed to tell where one ends. The mark of the end, which a string must not have, is left out.
const SYMBOLS_OF_LENGTH: [(u32, u32); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    (30, 3),
];

/// How many bytes a string in Huffman's code stands for; none if it ends within a symbol.
fn decoded_length(bytes: &[u8]) -> Option<usize> {
    let (mut symbols, mut code, mut bits) = (0, 0_u32, 0);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        (code, bits) = (code << 1 | u32::from(bit), bits + 1);
        if is_symbol(code, bits) {
            (symbols, code, bits) = (symbols + 1, 0, 0);
        } else if bits == 30 {
            return None;
        }
    }
    // The end is filled up with ones, less than a byte.
    (bits < 8 && code == (1 << bits) - 1).then_some(symbols)
}

fn is_symbol(code: u32, bits: u32) -> bool {
    let (mut first, mut before) = (0_u32, 5);
    for (length, count) in SYMBOLS_OF_LENGTH {
        first <<= length - before;
        before = length;
        if length == bits {
            return (first..first + count).contains(&code);
        }
        first += count;
    }
    false
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
        let by_coded_name = [&[0x10, 0x88][..], AUTHORITY_LITERALS[1].1, &[4], b"/a/b"].concat();
        let name = |first: &[u8]| [first, &literal(4, b"aaaa")[1..]].concat();
        for (authority, replaced) in [
            (literal(0x41, path), literal(0x41, &[b'a'; 44])),
            (literal(0x01, path), literal(0x01, &[b'a'; 44])),
            (literal(0x11, b"%2Ftmp%2Fx.sock"), literal(0x11, &[b'a'; 15])),
            (coded.to_vec(), literal(0x41, &[b'a'; 10])),
            (by_name, name(&[&[0x40, 10][..], b":authority"].concat())),
            (by_coded_name, name(&[&[0x10, 0x88][..], AUTHORITY_LITERALS[1].1].concat())),
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

    #[test]
    fn lengths_of_coded_strings_are_those_of_the_standards_examples() {
        // RFC 7541, appendix C.4 and C.6.
        for (coded, plain) in [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf], "custom-value"),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ] {
            assert_eq!(decoded_length(coded), Some(plain.len()), "{plain}");
        }
        assert_eq!(decoded_length(&[0xff; 4]), None);
        assert_eq!(SYMBOLS_OF_LENGTH.iter().map(|(_, count)| count).sum::<u32>(), 256);
    }
}
