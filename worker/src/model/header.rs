//! Reads the table of variables in `model.bin`. Numbers are little-endian; a string is a 16-bit length and that many bytes,
//! the last of which is zero. The weights themselves are skipped.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

/// The oldest binary version that is read: the first with types and aliases, of 2021.
const OLDEST: u32 = 4;
/// The newest binary version that this build's CTranslate2 reads.
const NEWEST: u32 = 6;

/// Bytes of each sample of a variable's values in the digest.
const SAMPLE: u64 = 4096;

/// The table of a `model.bin`.
#[derive(Debug)]
pub(super) struct Header {
    /// The binary version of the file.
    pub(super) version: u32,
    /// The BLAKE3 digest of the table and of the first, middle and last bytes of every variable. A digest of all bytes would
    /// read a file of many gigabytes a second time. The samples suffice, since further training changes all of a variable.
    pub(super) digest: [u8; 32],
    /// The specification, which names the kind of model.
    pub(super) spec: String,
    variables: HashMap<String, Variable>,
}

/// A variable: a weight, or a setting.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) shape: Vec<u32>,
    /// The elements' type, by CTranslate2's number.
    pub(super) kind: u8,
    /// The size of the values.
    pub(super) bytes: u32,
    /// The value of a setting, if it is a whole number.
    pub(super) value: Option<i64>,
}

/// Why a `model.bin` cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("is cut short: the file ends after {0} bytes, before its table says so")]
    Short(u64),
    #[error("is not a CTranslate2 model of binary version {OLDEST} to {NEWEST}: its version reads as {0}")]
    Version(u32),
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

impl Header {
    /// Reads the table to its end, which also shows whether the file is complete.
    pub(super) fn read(file: &mut (impl Read + Seek)) -> Result<Self, HeaderError> {
        let length = file.seek(SeekFrom::End(0)).map_err(HeaderError::Io)?;
        file.rewind().map_err(HeaderError::Io)?;
        let mut table = Table { file, length, hasher: blake3::Hasher::new() };
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
            let first = table.sample(bytes)?;
            let value = if rank == 0 { whole_number(kind, &first) } else { None };
            variables.insert(name, Variable { shape, kind, bytes, value });
        }
        for _ in 0..table.u32()? {
            let alias = table.string()?;
            if let Some(variable) = variables.get(&table.string()?).cloned() {
                // An alias takes no bytes of its own.
                variables.insert(alias, Variable { bytes: 0, ..variable });
            }
        }
        Ok(Self { version, digest: table.hasher.finalize().into(), spec, variables })
    }

    /// A variable's shape, if there is such a variable.
    pub(super) fn shape(&self, name: &str) -> Option<&[u32]> {
        self.variables.get(name).map(|variable| variable.shape.as_slice())
    }

    /// A setting's value, if there is such a setting.
    pub(super) fn setting(&self, name: &str) -> Option<i64> {
        self.variables.get(name)?.value
    }

    /// All variables with their names, in any order.
    pub(super) fn variables(&self) -> impl Iterator<Item = (&str, &Variable)> {
        self.variables.iter().map(|(name, variable)| (name.as_str(), variable))
    }
}

/// A whole number of the type that has this CTranslate2 number.
fn whole_number(kind: u8, bytes: &[u8]) -> Option<i64> {
    match kind {
        1 => bytes.try_into().ok().map(i8::from_le_bytes).map(i64::from),
        2 => bytes.try_into().ok().map(i16::from_le_bytes).map(i64::from),
        3 => bytes.try_into().ok().map(i32::from_le_bytes).map(i64::from),
        _ => None,
    }
}

struct Table<'a, F> {
    file: &'a mut F,
    length: u64,
    hasher: blake3::Hasher,
}

impl<F: Read + Seek> Table<'_, F> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), HeaderError> {
        self.file.read_exact(buffer).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => HeaderError::Short(self.length),
            _ => HeaderError::Io(error),
        })?;
        self.hasher.update(buffer);
        Ok(())
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

    /// Skips a variable's values and adds samples of them to the digest. Returns the first sample.
    fn sample(&mut self, bytes: u32) -> Result<Vec<u8>, HeaderError> {
        let start = self.file.stream_position().map_err(HeaderError::Io)?;
        let end = start + u64::from(bytes);
        if end > self.length {
            return Err(HeaderError::Short(self.length));
        }
        let mut first = vec![0; usize::try_from(SAMPLE.min(bytes.into())).unwrap_or(0)];
        self.fill(&mut first)?;
        let middle = start + u64::from(bytes / 2);
        for at in [middle, end.saturating_sub(SAMPLE)] {
            let at = at.max(start + SAMPLE);
            if at < end {
                self.file.seek(SeekFrom::Start(at)).map_err(HeaderError::Io)?;
                let mut sample = vec![0; usize::try_from(SAMPLE.min(end - at)).unwrap_or(0)];
                self.fill(&mut sample)?;
            }
        }
        self.file.seek(SeekFrom::Start(end)).map_err(HeaderError::Io)?;
        Ok(first)
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
    fn another_value_is_another_digest() {
        let bin = table("S", &[("a", &[7, 3]), ("b", &[2500])], &[]);
        let digest = |bin: &[u8]| Header::read(&mut Cursor::new(bin)).unwrap().digest;
        let start = bin.len() - 4 - 10_000;
        // The first, the middle, the last of the larger one, and the smaller one.
        for at in [start, start + 5000, start + 9999, start - 50] {
            let mut other = bin.clone();
            other[at] ^= 1;
            assert_ne!(digest(&other), digest(&bin), "{at}");
        }
    }

    #[test]
    fn settings_have_values() {
        assert_eq!(whole_number(1, &[1]), Some(1));
        assert_eq!(whole_number(2, &[0xff, 0xff]), Some(-1));
        assert_eq!(whole_number(3, &[0, 1, 0, 0]), Some(256));
        assert_eq!((whole_number(0, &[0; 4]), whole_number(3, &[0; 2])), (None, None));
    }

    #[test]
    fn a_file_cut_at_any_byte_is_refused() {
        let bin = table("S", &[("a", &[7, 3]), ("b", &[2])], &[("c", "a")]);
        for cut in 0..bin.len() {
            let error = Header::read(&mut Cursor::new(&bin[..cut])).unwrap_err();
            assert!(matches!(error, HeaderError::Short(at) if at == cut as u64), "cut at {cut}: {error}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let error = Header::read(&mut Cursor::new(b"version https://git-lfs.github.com/spec/v1")).unwrap_err();
        assert!(error.to_string().starts_with("is not a CTranslate2 model"), "{error}");
    }
}
