//! How lists of errors with help are printed and handed to `miette`.

use std::fmt;

use miette::Diagnostic;

/// One line per error, each with its help.
pub(crate) fn format_lines<E: Diagnostic>(f: &mut fmt::Formatter<'_>, errors: &[E]) -> fmt::Result {
    for (at, error) in errors.iter().enumerate() {
        if at > 0 {
            f.write_str("\n")?;
        }
        write!(f, "{error}")?;
        if let Some(help) = error.help() {
            write!(f, "; {help}")?;
        }
    }
    Ok(())
}

/// For [`Diagnostic::help`].
pub(crate) fn boxed_help(help: Option<&String>) -> Option<Box<dyn fmt::Display + '_>> {
    help.map(|help| Box::new(help) as Box<dyn fmt::Display>)
}

/// For [`Diagnostic::related`].
pub(crate) fn boxed_related<E: Diagnostic>(errors: &[E]) -> Option<Box<dyn Iterator<Item = &dyn Diagnostic> + '_>> {
    Some(Box::new(errors.iter().map(|error| error as &dyn Diagnostic)))
}
