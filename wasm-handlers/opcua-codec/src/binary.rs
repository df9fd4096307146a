//! Values in the binary encoding (part 6 of the specification, 5.2).

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Reads values one after the other.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed("it ends within a value"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.bytes(1)?[0])
    }

    /// The bytes of a number, the smallest first.
    pub fn number<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed("it ends within a number"))
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.number().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.number().map(u32::from_le_bytes)
    }

    /// The length of a string or an array; a null one has none.
    fn length(&mut self) -> Result<Option<usize>, Malformed> {
        match self.u32()? {
            u32::MAX => Ok(None),
            length => usize::try_from(length).map(Some).map_err(|_| Malformed("a length is too large")),
        }
    }

    /// A null string is empty; what is no UTF-8 in it is replaced.
    pub fn string(&mut self) -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(self.byte_string()?).into_owned())
    }

    /// An array whose items have a byte at least each, so that its length cannot be more than what is there.
    pub fn array<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        let length = self.length()?.unwrap_or(0);
        if length > self.0.len() {
            return Err(Malformed("an array is longer than its message"));
        }
        (0..length).map(|_| item(self)).collect()
    }

    /// A numeric NodeId of the specification's own namespace; others are none.
    pub fn node_id(&mut self) -> Result<Option<u32>, Malformed> {
        Ok(match self.u8()? & 0x3f {
            0 => Some(u32::from(self.u8()?)),
            1 => {
                let (namespace, id) = (self.u8()?, self.u16()?);
                (namespace == 0).then_some(u32::from(id))
            }
            2 => {
                let (namespace, id) = (self.u16()?, self.u32()?);
                (namespace == 0).then_some(id)
            }
            3 | 5 => {
                self.u16()?;
                self.string()?;
                None
            }
            4 => {
                self.u16()?;
                self.bytes(16)?;
                None
            }
            _ => return Err(Malformed("a NodeId has an unknown encoding")),
        })
    }

    /// A NodeId as it is written, to be sent back.
    pub fn node_id_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let before = self.0;
        self.node_id()?;
        Ok(&before[..before.len() - self.0.len()])
    }

    /// A ByteString; a null one is empty.
    pub fn byte_string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.length()?.unwrap_or(0);
        self.bytes(length)
    }

    /// Reads over diagnostics, which may have others within, `depth` deep at most.
    fn skip_diagnostics(&mut self, depth: u32) -> Result<(), Malformed> {
        let mask = self.u8()?;
        for bit in [0x01, 0x02, 0x04, 0x08] {
            if mask & bit != 0 {
                self.u32()?;
            }
        }
        if mask & 0x10 != 0 {
            self.string()?;
        }
        if mask & 0x20 != 0 {
            self.u32()?;
        }
        match mask & 0x40 != 0 {
            true if depth == 0 => Err(Malformed("its diagnostics are nested too deep")),
            true => self.skip_diagnostics(depth - 1),
            false => Ok(()),
        }
    }

    /// Reads over an ExtensionObject.
    pub fn skip_extension_object(&mut self) -> Result<(), Malformed> {
        self.node_id()?;
        if self.u8()? != 0 {
            self.byte_string()?;
        }
        Ok(())
    }

    /// The status in a header of a response.
    pub fn response_header(&mut self) -> Result<u32, Malformed> {
        // The time and the request's handle.
        self.bytes(8 + 4)?;
        let status = self.u32()?;
        self.skip_diagnostics(8)?;
        self.array(Self::string)?;
        self.skip_extension_object()?;
        Ok(status)
    }

    /// The text of a LocalizedText.
    pub fn localized_text(&mut self) -> Result<String, Malformed> {
        let mask = self.u8()?;
        if mask & 1 != 0 {
            self.string()?;
        }
        if mask & 2 != 0 { self.string() } else { Ok(String::new()) }
    }
}

/// Writes values one after the other.
#[derive(Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn string(self, text: &str) -> Self {
        let mut writer = self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        writer.0.extend(text.as_bytes());
        writer
    }

    pub fn null(self) -> Self {
        self.u32(u32::MAX)
    }

    /// The NodeId of an encoding of the specification.
    pub fn encoding(mut self, id: u16) -> Self {
        self.0.extend([1, 0]);
        self.0.extend(id.to_le_bytes());
        self
    }

    /// Bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// A header of a request without a session.
    pub fn request_header(self, handle: u32) -> Self {
        self.request_header_of(&[0; 2], handle)
    }

    /// A header of a request of the session with this token, as the server wrote it.
    pub fn request_header_of(self, token: &[u8], handle: u32) -> Self {
        // No time.
        let mut writer = self.bytes(token).bytes(&[0; 8]).u32(handle).u32(0).null().u32(0);
        // No additional header.
        writer.0.extend([0; 3]);
        writer
    }
}
