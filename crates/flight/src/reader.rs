use crate::Doubt;

/// Takes pieces off the front of a slice. What a format counts its lengths in stands with that format.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Doubt> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Doubt::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}
