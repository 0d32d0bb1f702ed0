//! What the kernel's command line says for a module: `MODULE.PARAMETER=VALUE`, as modprobe(8) takes it from there.
//!
//! What is built in takes its words itself. A word ends at a space that is not between quotes, and is handed on with its quotes,
//! which the kernel takes from the parameters of a module as from its own line (`next_arg`). What is behind `--` is the init's.

/// The parameters of a module, as finit_module(2) takes them.
pub(crate) fn parameters(line: &str, module: &str) -> String {
    let mut is_quoted = false;
    let words = line.split(|letter: char| {
        is_quoted ^= letter == '"';
        letter.is_ascii_whitespace() && !is_quoted
    });
    let own: Vec<String> = words.take_while(|word| *word != "--").filter_map(|word| parameter(word, module)).collect();
    own.join(" ")
}

/// What a word says to this module, if it is its own.
fn parameter(word: &str, module: &str) -> Option<String> {
    // Quotes may be around the whole of it.
    let (quote, word) = word.strip_prefix('"').map_or(("", word), |word| ("\"", word));
    let (name, rest) = word.split_once('.')?;
    // The kernel takes `-` and `_` for the same.
    let same = |name: &str| name.replace('-', "_");
    (same(name) == same(module) && !rest.is_empty()).then(|| format!("{quote}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_gets_its_own_words_in_their_order() {
        let line =
            "console=ttyS0 quiet virtio_net.napi_tx=0 virtio_blk.poll_queues=2 virtio-net.gso=1 virtio_net.csum\n";
        assert_eq!(parameters(line, "virtio_net"), "napi_tx=0 gso=1 csum");
        assert_eq!(parameters(line, "virtio-net"), "napi_tx=0 gso=1 csum");
        assert_eq!(parameters(line, "virtio_blk"), "poll_queues=2");
        for module in ["virtio", "net", "console", "quiet", "ext4", ""] {
            assert_eq!(parameters(line, module), "", "{module}");
        }
    }

    #[test]
    fn quotes_hold_words_together_and_stay() {
        let line = r#"x="a b.c=1" b.d="e f" "b.g=h i" b.j=k"l m"n b.o=p"#;
        assert_eq!(parameters(line, "b"), r#"d="e f" "g=h i" j=k"l m"n o=p"#);
        assert_eq!(parameters(r#"b.c="d b.e=f"#, "b"), r#"c="d b.e=f"#);
    }

    #[test]
    fn what_names_no_parameter_or_is_the_inits_is_left() {
        for line in ["", "b", "b.", "b=c.d", "x=b.c=1", ".b=1", "a.b.c=1", "-- b.c=1", "x --\tb.c=1"] {
            assert_eq!(parameters(line, "b"), "", "{line}");
        }
        assert_eq!(parameters("b.c=1 -- b.d=1", "b"), "c=1");
        assert_eq!(parameters("b.c=d.e b.f.g=--", "b"), "c=d.e f.g=--");
    }
}
