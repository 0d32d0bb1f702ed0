//! The handshake stream of a connection, put together from CRYPTO frames in any order.

use crate::Doubt;

/// Spans with gaps between them: a hello comes in a few pieces, and each new one is compared with all.
const MAX_SPANS: usize = 64;

/// Bytes by offset, with gaps; bounded.
#[derive(Debug)]
pub(super) struct Assembly {
    limit: usize,
    bytes: Vec<u8>,
    /// Which bytes have come: spans in order that neither touch nor overlap.
    spans: Vec<(usize, usize)>,
}

impl Assembly {
    pub(super) fn new(limit: usize) -> Assembly {
        Assembly { limit, bytes: Vec::new(), spans: Vec::new() }
    }

    /// Puts a piece in its place. What came before has to be repeated as it was.
    pub(super) fn insert(&mut self, offset: u64, data: &[u8]) -> Result<(), Doubt> {
        let start = usize::try_from(offset).map_err(|_| Doubt::TooLong)?;
        let end = start.checked_add(data.len()).filter(|end| *end <= self.limit).ok_or(Doubt::TooLong)?;
        if data.is_empty() {
            return Ok(());
        }
        for (from, to) in &self.spans {
            let (from, to) = (start.max(*from), end.min(*to));
            if from < to && self.bytes.get(from..to) != data.get(from - start..to - start) {
                return Err(Doubt::Malformed);
            }
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(place) = self.bytes.get_mut(start..end) {
            place.copy_from_slice(data);
        }
        let (mut start, mut end) = (start, end);
        self.spans.retain(|(from, to)| {
            let apart = *to < start || end < *from;
            if !apart {
                start = start.min(*from);
                end = end.max(*to);
            }
            apart
        });
        if self.spans.len() >= MAX_SPANS {
            return Err(Doubt::TooLong);
        }
        let at = self.spans.partition_point(|(from, _)| *from < start);
        self.spans.insert(at, (start, end));
        Ok(())
    }

    /// What has come without a gap from the start.
    pub(super) fn whole(&self) -> &[u8] {
        match self.spans.first() {
            Some((0, end)) => self.bytes.get(..*end).unwrap_or_default(),
            Some(_) | None => &[],
        }
    }

    /// The end of the last byte that has come.
    pub(super) fn end(&self) -> usize {
        self.spans.last().map_or(0, |(_, end)| *end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_in_any_order_make_the_whole(
            whole in prop::collection::vec(any::<u8>(), 1..300),
            cuts in prop::collection::vec((0..300_usize, 0..100_usize), 0..30),
        ) {
            let mut assembly = Assembly::new(300);
            for (at, length) in cuts {
                let start = at.min(whole.len());
                let end = (start + length).min(whole.len());
                assembly.insert(u64::try_from(start).unwrap(), &whole[start..end]).unwrap();
                prop_assert!(whole.starts_with(assembly.whole()));
            }
            assembly.insert(0, &whole).unwrap();
            prop_assert_eq!(assembly.whole(), &whole[..]);
            prop_assert_eq!(assembly.spans.len(), 1);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut assembly = Assembly::new(10);
        assembly.insert(4, b"abc").unwrap();
        assert_eq!(assembly.insert(5, b"xx"), Err(Doubt::Malformed));
        assert_eq!(assembly.insert(8, b"abc"), Err(Doubt::TooLong));
        assert_eq!(assembly.insert(u64::MAX, b"a"), Err(Doubt::TooLong));
        assert_eq!(assembly.whole(), b"");
        assembly.insert(0, b"0123").unwrap();
        assert_eq!(assembly.whole(), b"0123abc");
    }
}
