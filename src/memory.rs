//! How much memory there is for this process, and how much it takes. On Linux; elsewhere nothing is known.

use std::{fs, path::Path};

use procfs::{Current, Meminfo, ProcessCGroup, process::Process};

/// Bytes of this process that are in memory (proc(5), statm), the executable's own included.
pub fn resident() -> Option<u64> {
    let statm = Process::myself().and_then(|process| process.statm()).ok()?;
    Some(statm.resident * procfs::page_size())
}

/// Bytes that this process may take: what the machine has, or its control group or one above it allows (cgroups(7), of either
/// version), whichever is least.
pub fn available() -> Option<u64> {
    let machine = Meminfo::current().ok().map(|memory| memory.mem_total);
    let groups = Process::myself().and_then(|process| process.cgroups()).ok();
    let groups = groups.iter().flat_map(|groups| &groups.0).filter_map(|group| group_limit(Path::new(MOUNTED), group));
    machine.into_iter().chain(groups).min()
}

/// The least limit of a group and those above it. One that cannot be seen from inside a container is its root.
fn group_limit(mounted: &Path, group: &ProcessCGroup) -> Option<u64> {
    let (mounted, file) = if group.hierarchy == 0 {
        (mounted.to_owned(), "memory.max")
    } else if group.controllers.iter().any(|controller| controller == "memory") {
        (mounted.join("memory"), "memory.limit_in_bytes")
    } else {
        return None;
    };
    let path = Path::new(group.pathname.trim_start_matches('/'));
    // No limit is "max", or a number that is larger than any memory.
    let limit = |path: &Path| fs::read_to_string(mounted.join(path).join(file)).ok()?.trim().parse().ok();
    path.ancestors().filter_map(limit).min()
}

/// Where control groups are.
const MOUNTED: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_some_of_what_there_is() {
        let (resident, available) = (resident().unwrap(), available().unwrap());
        assert!(resident > 100_000 && resident < available, "{resident} of {available}");
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_counts() {
        let mounted = tempfile::tempdir().unwrap();
        let write = |path: &str, file: &str, limit: &str| {
            let path = mounted.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(file), limit).unwrap();
        };
        write("a/b", "memory.max", "max\n");
        write("a", "memory.max", "2000\n");
        write("", "memory.max", "9000\n");
        write("memory/x", "memory.limit_in_bytes", "700\n");
        let limit = |hierarchy, controllers: &[&str], pathname: &str| {
            let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
            group_limit(mounted.path(), &ProcessCGroup { hierarchy, controllers, pathname: pathname.to_owned() })
        };
        assert_eq!(limit(0, &[], "/a/b"), Some(2000));
        assert_eq!(limit(0, &[], "/of/the/host"), Some(9000), "a container sees its own group as the root");
        assert_eq!(limit(4, &["memory"], "/x"), Some(700));
        assert_eq!(limit(5, &["cpu", "cpuacct"], "/x"), None);
    }
}
