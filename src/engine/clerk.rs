//! The thread that reads what takes time, on request: the kernel's numbers for `status` and `banned`, and the
//! configuration for `reload`. The engine goes on meanwhile.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tokio::sync::mpsc::Sender;
use tracing::warn;

use super::core::{Asked, ClientId, Event, KernelView, Reloaded};
use super::spec::Specs;
use crate::control::Request;
use crate::nft;

/// Sets larger than this are counted, not listed: a dump is quadratic in the size.
const LISTED_AT_MOST: u64 = 50_000;

/// Reads the configuration anew: given the specs in force, gives new ones or the report of mistakes.
pub type Load = Box<dyn FnMut(&Specs) -> Result<Specs, String> + Send>;

/// What the clerk is asked to do.
#[derive(Debug)]
pub enum Errand {
    /// Read the kernel's numbers, then let the request go on to the core.
    Look(Box<Asked>, Arc<Specs>),
    /// Read the configuration.
    Load(Option<ClientId>, Arc<Specs>),
}

/// Whether a request shows the kernel's own numbers.
pub fn shows_kernel(request: &Request) -> bool {
    match request {
        Request::Status { .. } => true,
        Request::Banned { addrs } => addrs.is_empty(),
        _ => false,
    }
}

/// Runs errands until the engine goes away.
pub fn run(errands: &Receiver<Errand>, mut load: Load, done: &Sender<Event>) {
    let mut kernel = None;
    while let Ok(errand) = errands.recv() {
        let event = match errand {
            Errand::Look(mut asked, specs) => {
                let elements = matches!(asked.request, Request::Banned { .. });
                if kernel.is_none() {
                    kernel = nft::Kernel::open().inspect_err(|e| warn!("{e}")).ok();
                }
                asked.kernel = kernel.as_mut().map(|kernel| look(kernel, &specs, elements));
                Event::Asked(*asked)
            }
            Errand::Load(client, specs) => Event::Reloaded(Reloaded { client, specs: load(&specs) }),
        };
        if done.blocking_send(event).is_err() {
            return;
        }
    }
}

/// Of a set that stands in several tables, the smallest count: a table that lacks bans shows.
fn look(kernel: &mut nft::Kernel, specs: &Specs, with_elements: bool) -> KernelView {
    let mut view = KernelView { generation: kernel.generation().unwrap_or(0), ..KernelView::default() };
    for family in specs.families() {
        match kernel.table(family, &specs.table) {
            Ok(Some(table)) => look_into(kernel, &table, with_elements, &mut view),
            Ok(None) => {}
            Err(e) => warn!("{e}"),
        }
    }
    view
}

fn look_into(kernel: &mut nft::Kernel, table: &nft::KernelTable, with_elements: bool, view: &mut KernelView) {
    for (jail, counter) in table.blocked() {
        let (packets, bytes) = view.dropped.entry(jail.to_owned()).or_default();
        (*packets, *bytes) = (*packets + counter.packets, *bytes + counter.bytes);
    }
    for set in &table.sets {
        let Some(wanted) = &set.set else { continue };
        let counted = match set.count {
            Some(count) => Some(count),
            None => kernel.count(table.family, &table.name, &set.name).ok().flatten(),
        };
        let small = counted.is_none_or(|count| u64::from(count) <= LISTED_AT_MOST);
        // Expired elements are counted until they are freed, and not listed: a listing is the truth where it is cheap.
        let listed = match small {
            true => kernel.elements(table.family, &table.name, wanted).ok(),
            false => None,
        };
        if let Some(count) = listed.as_ref().map(|list| list.len() as u64).or(counted.map(u64::from)) {
            view.counts.entry(set.name.clone()).and_modify(|least| *least = count.min(*least)).or_insert(count);
        }
        if with_elements && wanted.counter {
            for element in listed.unwrap_or_default() {
                let Some(counter) = element.counter else { continue };
                let (packets, bytes) = view.elements.entry((set.name.clone(), element.interval.first())).or_default();
                (*packets, *bytes) = (*packets + counter.packets, *bytes + counter.bytes);
            }
        }
    }
}
