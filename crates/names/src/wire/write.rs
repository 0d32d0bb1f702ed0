use super::{CLASS_IN, Data, Field, MAX_MESSAGE, Name, Record, kind};

/// The highest offset that a compression pointer can hold, in 14 bits.
const MAX_POINTER: usize = 0x3fff;
/// How many places in a message we remember to point at. Enough for any ordinary answer; more would only make hostile
/// ones expensive.
const MAX_TARGETS: usize = 64;

/// Writes a message from front to back.
#[derive(Debug)]
pub(crate) struct Writer {
    out: Vec<u8>,
    /// Offsets of names in `out` that a pointer may lead to.
    targets: Vec<u16>,
}

impl Writer {
    /// Starts a message with the given header and no records.
    pub(crate) fn new(id: u16, flags: u16) -> Writer {
        let mut writer = Writer { out: Vec::with_capacity(512), targets: Vec::new() };
        writer.word(id);
        writer.word(flags);
        for _ in 0..4 {
            writer.word(0);
        }
        writer
    }

    pub(crate) fn word(&mut self, word: u16) {
        self.out.extend_from_slice(&word.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// The question, in the case given.
    pub(crate) fn question(&mut self, name: &Name, qtype: u16) {
        self.name(name);
        self.word(qtype);
        self.word(CLASS_IN);
        self.count(0, 1);
    }

    /// Records of one section (1 answer, 2 authority, 3 additional), which must be written in that order.
    pub(crate) fn section(&mut self, section: usize, records: &[Record<'_>]) {
        let mut count = 0;
        for record in records {
            // Past this the message is of no use to anybody; the caller looks at the length.
            if self.out.len() > MAX_MESSAGE {
                break;
            }
            self.record(record);
            count += 1;
        }
        self.count(section, count);
    }

    /// An OPT record (RFC 6891) as the only one of the additional section not yet counted.
    pub(crate) fn opt(&mut self, size: u16, extended_rcode: u8, flags: u16, options: &[u8], before: usize) {
        self.bytes(&[0]);
        self.word(kind::OPT);
        self.word(size);
        self.bytes(&[extended_rcode, 0]);
        self.word(flags);
        self.word(u16::try_from(options.len()).unwrap_or(0));
        self.bytes(options);
        self.count(3, before + 1);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    fn record(&mut self, record: &Record<'_>) {
        self.name(&record.name);
        self.word(record.kind);
        self.word(record.class);
        self.bytes(&record.ttl.to_be_bytes());
        let length_at = self.out.len();
        self.word(0);
        match &record.data {
            Data::Bytes(bytes) => self.bytes(bytes),
            Data::Fields(fields) => {
                for field in fields {
                    match field {
                        Field::Bytes(bytes) => self.bytes(bytes),
                        Field::Name(name) if compresses(record.kind) => self.name(name),
                        Field::Name(name) => self.bytes(name.as_bytes()),
                    }
                }
            }
        }
        let length = self.out.len().saturating_sub(length_at + 2);
        // Expanded names can make data longer than its length field can say; the message is then too long as well.
        self.patch(length_at, u16::try_from(length).unwrap_or(u16::MAX));
    }

    fn name(&mut self, name: &Name) {
        for suffix in name.suffixes() {
            if suffix == [0] {
                break;
            }
            if let Some(target) = self.targets.iter().find(|target| self.is_at(usize::from(**target), suffix)) {
                self.word(0xc000 | *target);
                return;
            }
            if self.targets.len() < MAX_TARGETS && self.out.len() <= MAX_POINTER {
                self.targets.extend(u16::try_from(self.out.len()));
            }
            let label = suffix.first().and_then(|length| suffix.get(..usize::from(*length) + 1)).unwrap_or(&[]);
            self.out.extend_from_slice(label);
        }
        self.bytes(&[0]);
    }

    /// Whether the name written at `position` is `suffix`.
    fn is_at(&self, mut position: usize, mut suffix: &[u8]) -> bool {
        // Each turn takes a label off the suffix or follows one of our own pointers, which lead backwards.
        loop {
            let Some(&length) = self.out.get(position) else { return false };
            if length >= 0xc0 {
                let Some(&low) = self.out.get(position + 1) else { return false };
                position = usize::from(length & 0x3f) << 8 | usize::from(low);
                continue;
            }
            let size = usize::from(length) + 1;
            let (Some(written), Some(label)) = (self.out.get(position..position + size), suffix.get(..size)) else {
                return false;
            };
            if !written.eq_ignore_ascii_case(label) {
                return false;
            }
            if length == 0 {
                return true;
            }
            position += size;
            suffix = suffix.get(size..).unwrap_or(&[]);
        }
    }

    fn count(&mut self, section: usize, count: usize) {
        // A message of at most 65,535 bytes has fewer records than that.
        self.patch(4 + 2 * section, u16::try_from(count).unwrap_or(u16::MAX));
    }

    fn patch(&mut self, position: usize, word: u16) {
        if let Some(place) = self.out.get_mut(position..position + 2) {
            place.copy_from_slice(&word.to_be_bytes());
        }
    }
}

/// Whether names in the data may be written compressed: only where every receiver expects it (RFC 3597 §4).
fn compresses(kind: u16) -> bool {
    matches!(kind, 2..=9 | 12 | 14 | 15)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::{HEADER_LEN, Reader};

    fn name(text: &str) -> Name {
        let mut bytes = Vec::new();
        for label in text.split('.').filter(|label| !label.is_empty()) {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        Reader::new(&bytes).plain_name().unwrap()
    }

    #[test]
    fn a_name_that_was_written_before_becomes_a_pointer() {
        let mut writer = Writer::new(1, 0);
        writer.question(&name("www.example.org"), 1);
        let before = writer.out.len();
        let record = |owner: &str| Record::new(name(owner), 1, 60, Data::Bytes(Cow::Borrowed(&[1, 2, 3, 4])));
        writer.section(1, &[record("WWW.example.ORG"), record("mail.example.org")]);
        let message = writer.finish();
        assert_eq!(message[before..before + 2], [0xc0, 12]);
        assert_eq!(message[before + 16..before + 23], *b"\x04mail\xc0\x10");
    }

    #[test]
    fn names_are_not_compressed_in_data_of_newer_types() {
        let mut writer = Writer::new(1, 0);
        writer.question(&name("example.org"), 33);
        let data = Data::Fields(vec![Field::Bytes(&[0, 1, 0, 2, 0, 3]), Field::Name(name("example.org"))]);
        writer.section(1, &[Record::new(name("example.org"), 33, 60, data)]);
        assert!(writer.finish().ends_with(b"\0\x01\0\x02\0\x03\x07example\x03org\0"));
    }

    fn names() -> impl Strategy<Value = Name> {
        // Few letters, so that names share suffixes, and enough labels for some to grow long.
        let label = prop_oneof![4 => "[abAB]", 1 => "[a-z]{40,63}"];
        prop::collection::vec(label, 0..8).prop_map(|labels| {
            let mut labels = labels;
            while labels.iter().map(|label| label.len() + 1).sum::<usize>() > 254 {
                labels.pop();
            }
            name(&labels.join("."))
        })
    }

    fn records() -> impl Strategy<Value = Record<'static>> {
        let data = prop_oneof![
            names().prop_map(|target| (5, Data::Fields(vec![Field::Name(target)]))),
            names().prop_map(|host| (15, Data::Fields(vec![Field::Bytes(&[0, 10]), Field::Name(host)]))),
            names().prop_map(|next| (47, Data::Fields(vec![Field::Name(next), Field::Bytes(&[0, 1, 2])]))),
            prop::collection::vec(any::<u8>(), 0..700).prop_map(|bytes| (16, Data::Bytes(Cow::Owned(bytes)))),
        ];
        (names(), data, any::<u32>()).prop_map(|(owner, (kind, data), ttl)| Record::new(owner, kind, ttl, data))
    }

    fn plain(data: &Data<'_>) -> Vec<u8> {
        match data {
            Data::Bytes(bytes) => bytes.to_vec(),
            Data::Fields(fields) => fields
                .iter()
                .flat_map(|field| match field {
                    Field::Bytes(bytes) => bytes.to_vec(),
                    Field::Name(name) => name.as_bytes().to_ascii_lowercase(),
                })
                .collect(),
        }
    }

    proptest! {
        // Each case is a large message; a few say what many would.
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Past the reach of pointers too: the largest of these messages have more than 16 KiB.
        #[test]
        fn what_was_written_reads_the_same(written in prop::collection::vec(records(), 0..120)) {
            let mut writer = Writer::new(7, 0x8180);
            writer.section(1, &written);
            let message = writer.finish();
            let mut reader = Reader::new(&message);
            let header = reader.bytes(HEADER_LEN).unwrap();
            prop_assert_eq!(usize::from(u16::from_be_bytes([header[6], header[7]])), written.len());
            for expected in &written {
                let record = reader.record().unwrap();
                prop_assert!(record.name.same(&expected.name));
                prop_assert_eq!((record.kind, record.ttl), (expected.kind, expected.ttl));
                prop_assert_eq!(plain(&record.data), plain(&expected.data));
            }
            prop_assert!(reader.is_at_end());
        }
    }
}
