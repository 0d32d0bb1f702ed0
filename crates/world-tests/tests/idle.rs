//! Many sandboxes that stay and do nothing.

use std::fs;
use std::time::Duration;

use cofferdam_world_tests::{World, long};

/// Prints the memory of each keeper whose sandbox's name begins with a word, and of everything below it, in KiB.
///
/// That is the proportional set size, which shares out what is shared. Of a process that guards itself a plain user sees
/// the anonymous memory alone.
const MEMORY: &str = r#"
import os, sys
parents, sizes, keepers = {}, {}, []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        parents[pid] = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1]
        if open(f"/proc/{pid}/cmdline").read().startswith(f"cofferdam keeps {sys.argv[1]}"): keepers.append(pid)
        try: lines, field = open(f"/proc/{pid}/smaps_rollup").readlines(), "Pss:"
        except PermissionError: lines, field = open(f"/proc/{pid}/status").readlines(), "RssAnon:"
        sizes[pid] = next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)
    except (FileNotFoundError, ProcessLookupError): pass
# A gateway has its keeper's name too, since it was forked from it.
for keeper in (pid for pid in keepers if parents[pid] not in keepers):
    family, more = set(), {keeper}
    while more:
        family |= more
        more = {pid for pid, parent in parents.items() if parent in family} - family
    print("memory", len(family), sum(sizes.get(pid, 0) for pid in family))
"#;

#[test]
fn an_idle_sandbox_is_small_and_delays_no_start() {
    let count = if long() { 500 } else { 20 };
    let world = World::shared();
    let sandbox = world.sandbox().patience(Duration::from_secs(if long() { 600 } else { 60 }));
    fs::write(sandbox.folder().join("memory.py"), MEMORY).expect("the folder is ours");
    let ran = world.script_in(
        sandbox,
        &format!(
            r#"
            idle=idle-$$
            starts() {{
                for n in $(seq 9); do
                    began=$EPOCHREALTIME
                    $C create $idle-$1$n --no-cwd
                    echo "$1 $((${{EPOCHREALTIME/./}} - ${{began/./}}))"
                done
            }}
            starts first
            for n in $(seq {count}); do $C create $idle-$n --no-cwd; done
            starts last
            python3 memory.py $idle
            $C ls --quiet | xargs $C rm --force
            python3 memory.py $idle | sed 's/^/left: /'
            "#
        ),
    );
    ran.exits(0).never_says("left: ");
    let said = ran.stdout();
    let numbers = |word: &str| {
        let lines = said.lines().filter_map(|line| line.strip_prefix(word)?.split(' ').next_back()?.parse().ok());
        let mut numbers: Vec<u64> = lines.collect();
        numbers.sort_unstable();
        numbers
    };
    let (first, last, memory) = (numbers("first "), numbers("last "), numbers("memory "));
    assert_eq!((first.len(), last.len(), memory.len()), (9, 9, count + 18), "{ran}");
    println!(
        "{} sandboxes: {} KiB in the median, {} at most; starts in {} µs before and {} after, in the median",
        memory.len(),
        memory[memory.len() / 2],
        memory[memory.len() - 1],
        first[4],
        last[4]
    );
    // Keeper, gateway, the broker of its ports, and process 1.
    assert!(said.lines().filter(|line| line.starts_with("memory ")).all(|line| line.starts_with("memory 4 ")), "{ran}");
    assert!(memory[memory.len() - 1] <= 12 << 10, "{ran}");
    // A short run says nothing about time: the machine may be busy for a moment.
    assert!(!long() || last[4] * 2 <= first[4] * 3, "{} µs, and before {} µs", last[4], first[4]);
}
