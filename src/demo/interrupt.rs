//! What an interrupted demo still does: end its nodes and remove its files.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// Process ids of the nodes that run.
static CHILDREN: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn children() -> MutexGuard<'static, Vec<u32>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node runs, until [`child_ends`].
pub(crate) fn child_runs(pid: u32) {
    children().push(pid);
}

/// The node is about to be waited for: after that its id may be somebody else's.
pub(crate) fn child_ends(pid: u32) {
    children().retain(|other| *other != pid);
}

/// From now on SIGINT and SIGTERM kill the children, remove `folder` and end the process.
pub(crate) fn clean_up_on_signals(folder: PathBuf) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::failed(format!("cannot listen for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    drop(guard);
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => libc::SIGINT,
                _ = terminate.recv() => libc::SIGTERM,
            }
        });
        // Held to the end: nobody else waits for one of them meanwhile.
        let children = children();
        for pid in children.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
            // SAFETY: the child has not been waited for, so the id is its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            // SAFETY: likewise; the status is not asked for.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        // Nobody writes there any more; what cannot be removed stays in the temporary folder.
        let _ = std::fs::remove_dir_all(&folder);
        eprintln!("pyralog: the demo was interrupted and has cleaned up");
        std::process::exit(128 + number);
    });
    Ok(())
}
