//! The operator's own pages for answers that are not a backend's.

use std::{fs, io, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tracing::{info, warn};

use crate::files;

/// The pages of a folder, as Hipache names them: `error_400.html`, `error_503.html`, and `error_default.html` for every other
/// status and for whichever of the two is missing. A status without a page is answered in plain text.
pub struct ErrorPages {
    folder: PathBuf,
    pages: ArcSwap<Pages>,
}

#[derive(Clone, Default)]
struct Pages {
    bad_request: Option<Bytes>,
    unavailable: Option<Bytes>,
    default: Option<Bytes>,
}

impl ErrorPages {
    /// Reads the pages of a folder, which may have any of them.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        fs::read_dir(&folder)?;
        let pages = Self { folder, pages: ArcSwap::default() };
        pages.reread();
        Ok(pages)
    }

    /// Reads the pages again. One that is there but cannot be read stays as it was.
    pub fn reread(&self) {
        let held = self.pages.load();
        let pages = Pages {
            bad_request: self.read("error_400.html", held.bad_request.as_ref()),
            unavailable: self.read("error_503.html", held.unavailable.as_ref()),
            default: self.read("error_default.html", held.default.as_ref()),
        };
        let count = [&pages.bad_request, &pages.unavailable, &pages.default].into_iter().flatten().count();
        info!(folder = %self.folder.display(), count, "error pages are read");
        self.pages.store(Arc::new(pages));
    }

    /// The page for a status.
    pub fn page(&self, status: u16) -> Option<Bytes> {
        let pages = self.pages.load();
        let own = match status {
            400 => &pages.bad_request,
            503 => &pages.unavailable,
            _ => &None,
        };
        own.as_ref().or(pages.default.as_ref()).cloned()
    }

    fn read(&self, name: &str, held: Option<&Bytes>) -> Option<Bytes> {
        let path = self.folder.join(name);
        match files::read(&path, LARGEST) {
            Ok(page) => Some(page.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!("the error page {} cannot be read: {error}", path.display());
                held.cloned()
            }
        }
    }
}

/// Bytes of a page: it is held in memory.
const LARGEST: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_page_of_its_own_has_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let pages = ErrorPages::open(folder.path().to_owned()).unwrap();
        let page = |status| pages.page(status).map(|page| String::from_utf8_lossy(&page).into_owned());
        assert_eq!(page(400), None);
        write("error_503.html", "away");
        pages.reread();
        assert_eq!(page(503).as_deref(), Some("away"));
        assert_eq!(page(400), None);
        write("error_default.html", "oh");
        pages.reread();
        assert_eq!(page(503).as_deref(), Some("away"));
        assert_eq!(page(400).as_deref(), Some("oh"));
        assert_eq!(page(408).as_deref(), Some("oh"));
    }

    #[test]
    fn a_page_that_cannot_be_read_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("error_400.html");
        fs::write(&path, "first").unwrap();
        let pages = ErrorPages::open(folder.path().to_owned()).unwrap();
        fs::write(&path, vec![b'x'; 1024 * 1024 + 1]).unwrap();
        pages.reread();
        assert_eq!(pages.page(400).unwrap(), "first");
        fs::remove_file(&path).unwrap();
        pages.reread();
        assert_eq!(pages.page(400), None);
        assert!(ErrorPages::open(path).is_err());
    }
}
