use std::ops::Range;

/// A part of a text that knows where it stands, so that an error can point at it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) text: &'a str,
    /// Bytes before it in the whole text.
    pub(crate) at: usize,
}

impl<'a> Piece<'a> {
    pub(crate) fn whole(text: &'a str) -> Piece<'a> {
        Piece { text, at: 0 }
    }

    pub(crate) fn span(self) -> Range<usize> {
        self.at..self.at + self.text.len()
    }

    pub(crate) fn split(self, by: char) -> impl Iterator<Item = Piece<'a>> {
        let mut at = self.at;
        self.text.split(by).map(move |text| {
            let piece = Piece { text, at };
            at += text.len() + by.len_utf8();
            piece
        })
    }

    pub(crate) fn split_once(self, by: char) -> Option<(Piece<'a>, Piece<'a>)> {
        let (left, right) = self.text.split_once(by)?;
        let at = self.at + left.len() + by.len_utf8();
        Some((Piece { text: left, at: self.at }, Piece { text: right, at }))
    }

    pub(crate) fn strip_prefix(self, prefix: &str) -> Option<Piece<'a>> {
        let text = self.text.strip_prefix(prefix)?;
        Some(Piece { text, at: self.at + prefix.len() })
    }

    pub(crate) fn strip_suffix(self, suffix: &str) -> Option<Piece<'a>> {
        let text = self.text.strip_suffix(suffix)?;
        Some(Piece { text, at: self.at })
    }

    /// Without its first `bytes`, which have to be whole characters.
    pub(crate) fn skip(self, bytes: usize) -> Piece<'a> {
        match self.text.get(bytes..) {
            Some(text) => Piece { text, at: self.at + bytes },
            None => self,
        }
    }

    pub(crate) fn trim(self) -> Piece<'a> {
        let text = self.text.trim_start();
        Piece { at: self.at + (self.text.len() - text.len()), text: text.trim_end() }
    }
}
