//! The table of variables in `model.bin`, as CTranslate2's converters write it: little-endian, a string is a 16-bit
//! length and that many bytes with a final zero. The weights themselves are skipped.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

/// The oldest layout with types and aliases; CTranslate2 has written it since 2021.
const OLDEST: u32 = 4;
/// The newest that this build's CTranslate2 reads.
const NEWEST: u32 = 6;

/// What `model.bin` says of itself.
#[derive(Debug)]
pub(super) struct Header {
    /// The kind of model.
    pub(super) spec: String,
    variables: HashMap<String, Variable>,
}

/// A variable: a weight, or a setting.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) shape: Vec<u32>,
    /// CTranslate2's number of the type of its elements.
    pub(super) kind: u8,
    /// Its size.
    pub(super) bytes: u32,
}

/// What is wrong with a `model.bin`.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("is cut short: it should go on after {0} bytes")]
    Short(u64),
    #[error("is no CTranslate2 model of binary version {OLDEST} to {NEWEST}: its version reads as {0}")]
    Version(u32),
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

impl Header {
    /// Reads the table to its end, which shows whether the file is all there.
    pub(super) fn read(file: &mut (impl Read + Seek)) -> Result<Self, HeaderError> {
        let length = file.seek(SeekFrom::End(0)).map_err(HeaderError::Io)?;
        file.rewind().map_err(HeaderError::Io)?;
        let mut table = Table { file, length };
        let version = table.u32()?;
        if !(OLDEST..=NEWEST).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        let spec = table.string()?;
        let _revision = table.u32()?;
        let mut variables = HashMap::new();
        for _ in 0..table.u32()? {
            let name = table.string()?;
            let rank = table.bytes::<1>()?[0];
            let shape = (0..rank).map(|_| table.u32()).collect::<Result<Vec<u32>, _>>()?;
            let kind = table.bytes::<1>()?[0];
            let bytes = table.u32()?;
            table.skip(bytes)?;
            variables.insert(name, Variable { shape, kind, bytes });
        }
        for _ in 0..table.u32()? {
            let alias = table.string()?;
            if let Some(variable) = variables.get(&table.string()?).cloned() {
                // It takes no room of its own.
                variables.insert(alias, Variable { bytes: 0, ..variable });
            }
        }
        Ok(Self { spec, variables })
    }

    /// A variable's shape, if there is such a variable.
    pub(super) fn shape(&self, name: &str) -> Option<&[u32]> {
        self.variables.get(name).map(|variable| variable.shape.as_slice())
    }

    /// All variables with their names, in no order.
    pub(super) fn variables(&self) -> impl Iterator<Item = (&str, &Variable)> {
        self.variables.iter().map(|(name, variable)| (name.as_str(), variable))
    }
}

struct Table<'a, F> {
    file: &'a mut F,
    length: u64,
}

impl<F: Read + Seek> Table<'_, F> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), HeaderError> {
        self.file.read_exact(buffer).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => HeaderError::Short(self.length),
            _ => HeaderError::Io(error),
        })
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn string(&mut self) -> Result<String, HeaderError> {
        let length = u16::from_le_bytes(self.bytes()?);
        let mut bytes = vec![0; usize::from(length)];
        self.fill(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }

    fn skip(&mut self, bytes: u32) -> Result<(), HeaderError> {
        let to = self.file.seek(SeekFrom::Current(i64::from(bytes))).map_err(HeaderError::Io)?;
        if to > self.length { Err(HeaderError::Short(self.length)) } else { Ok(()) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Cursor;

    use super::*;

    /// A `model.bin` of 32-bit variables that are all zero.
    pub(crate) fn table(spec: &str, variables: &[(&str, &[u32])], aliases: &[(&str, &str)]) -> Vec<u8> {
        let count = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
        let string = |text: &str| {
            let mut bytes = u16::try_from(text.len() + 1).unwrap().to_le_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes.push(0);
            bytes
        };
        let mut bin = NEWEST.to_le_bytes().to_vec();
        bin.extend(string(spec));
        bin.extend(8u32.to_le_bytes());
        bin.extend(count(variables.len()));
        for (name, shape) in variables {
            bin.extend(string(name));
            bin.push(u8::try_from(shape.len()).unwrap());
            bin.extend(shape.iter().flat_map(|side| side.to_le_bytes()));
            bin.push(0);
            let bytes = 4 * shape.iter().product::<u32>();
            bin.extend(bytes.to_le_bytes());
            bin.extend(vec![0; bytes as usize]);
        }
        bin.extend(count(aliases.len()));
        for (alias, name) in aliases {
            bin.extend(string(alias));
            bin.extend(string(name));
        }
        bin
    }

    #[test]
    fn shapes_are_found_under_their_names_and_aliases() {
        let bin = table("S", &[("a", &[7, 3]), ("b", &[])], &[("c", "a")]);
        let header = Header::read(&mut Cursor::new(bin)).unwrap();
        assert_eq!(header.spec, "S");
        assert_eq!((header.shape("c"), header.shape("b"), header.shape("d")), (Some(&[7, 3][..]), Some(&[][..]), None));
    }

    #[test]
    fn a_file_cut_anywhere_is_known_to_be() {
        let bin = table("S", &[("a", &[7, 3]), ("b", &[2])], &[("c", "a")]);
        for cut in 0..bin.len() {
            let error = Header::read(&mut Cursor::new(&bin[..cut])).unwrap_err();
            assert!(matches!(error, HeaderError::Short(at) if at == cut as u64), "cut at {cut}: {error}");
        }
    }

    #[test]
    fn bytes_that_are_no_model_are_refused() {
        let error = Header::read(&mut Cursor::new(b"version https://git-lfs.github.com/spec/v1")).unwrap_err();
        assert!(error.to_string().starts_with("is no CTranslate2 model"), "{error}");
    }
}
