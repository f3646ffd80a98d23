//! What a name looks like.

use std::fmt;

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `organisation/model`
    pub repo: String,
    /// A branch, a tag or a commit; `main` unless the name says otherwise.
    pub revision: String,
}

impl Name {
    /// Reads `organisation/model` or `organisation/model@revision`; `None`: no name of the hub.
    pub fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organisation, model) = repo.split_once('/')?;
        let fits = is_word(organisation) && is_word(model) && revision.split('/').all(is_word);
        fits.then(|| Self { repo: repo.into(), revision: revision.into() })
    }
}

/// Letters, digits and `-_.`, not beginning or ending with a mark: no path climbs out of it.
fn is_word(text: &str) -> bool {
    let marks = ['-', '_', '.'];
    let known = |letter: char| letter.is_ascii_alphanumeric() || marks.contains(&letter);
    !text.is_empty()
        && text.len() <= 96
        && text.chars().all(known)
        && !text.starts_with(marks)
        && !text.ends_with(marks)
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.repo)?;
        if self.revision == "main" { Ok(()) } else { write!(out, "@{}", self.revision) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let name = Name::parse("Qwen/Qwen3-VL-4B-Instruct").unwrap();
        assert_eq!((name.repo.as_str(), name.revision.as_str()), ("Qwen/Qwen3-VL-4B-Instruct", "main"));
        let name = Name::parse("a/b@refs/pr/3").unwrap();
        assert_eq!((name.repo.as_str(), name.to_string().as_str()), ("a/b", "a/b@refs/pr/3"));
        for path in
            ["model", "./a", "../a", "/a/b", "a/b/c", "a/", "a/..", "a/b@", "a/b@../x", "a b/c", "a/b@x@y", "~/a"]
        {
            assert_eq!(Name::parse(path), None, "{path}");
        }
    }
}
