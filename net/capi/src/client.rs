//! Handles of clients: where the cluster is and how long to wait for it.

use std::ffi::c_char;
use std::mem::size_of;
use std::ptr;
use std::sync::Mutex;

use pyralog_net::client::{Client, ClientConfig, Place};
use pyralog_net::message::Consistency;

use crate::args::{self, Out};
use crate::error::{Failure, guard, guard_quietly};
use crate::sized::{self, Growing};
use crate::status::*;

/// How a client behaves. Set it up with pyralog_client_config_init().
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ClientSettings {
    /// Bytes of this struct.
    pub size: usize,
    /// Who it is, for the operator of the node; at most 128 bytes. NULL: no name. Only read during the call.
    pub name: *const c_char,
    /// Longest time to connect and shake hands with one address, milliseconds.
    pub connect_timeout_ms: u64,
    /// Longest wait for one reply, milliseconds.
    pub request_timeout_ms: u64,
    /// How long requests that change nothing are tried again after errors that pass, milliseconds.
    pub retry_for_ms: u64,
    /// Who may answer its reads: a PYRALOG_CONSISTENCY_ number.
    pub consistency: i32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: `repr(C)`; a size, a pointer and integers whose sizes leave no padding.
unsafe impl Growing for ClientSettings {
    const FIRST_BYTES: usize = size_of::<Self>();
    const NAME: &'static str = "pyralog_client_config_t";

    fn with_size(self, size: usize) -> Self {
        Self { size, ..self }
    }
}

impl ClientSettings {
    pub(crate) fn new() -> Self {
        let config = ClientConfig::default();
        Self {
            size: size_of::<Self>(),
            name: ptr::null(),
            connect_timeout_ms: args::as_milliseconds(config.connect_timeout),
            request_timeout_ms: args::as_milliseconds(config.request_timeout),
            retry_for_ms: args::as_milliseconds(config.retry_for),
            consistency: i32::from(config.consistency as u8),
            reserved: 0,
        }
    }

    /// # Safety
    /// `name` is null or a text that ends with a zero byte.
    unsafe fn config(&self) -> Result<ClientConfig, Failure> {
        args::zero(self.reserved)?;
        let name = match self.name.is_null() {
            true => "",
            // SAFETY: not null, and as for this function.
            false => unsafe { args::text(self.name, "the client's name") }?,
        };
        if name.len() > MAX_NAME_BYTES {
            let length = name.len();
            return Err(Failure::argument(format!(
                "the client's name has {length} bytes; {MAX_NAME_BYTES} are the most"
            )));
        }
        let consistency = args::choice(
            self.consistency,
            "consistency",
            &[
                (PYRALOG_CONSISTENCY_LEADER, Consistency::Leader),
                (PYRALOG_CONSISTENCY_LINEARIZABLE, Consistency::Linearizable),
                (PYRALOG_CONSISTENCY_ANY_REPLICA, Consistency::AnyReplica),
            ],
        )?;
        Ok(ClientConfig {
            name: name.to_owned(),
            connect_timeout: args::milliseconds(self.connect_timeout_ms),
            request_timeout: args::milliseconds(self.request_timeout_ms),
            retry_for: args::milliseconds(self.retry_for_ms),
            consistency,
        })
    }
}

/// As the handshake bounds it.
const MAX_NAME_BYTES: usize = 128;

/// A client of a cluster: creates and deletes topics, and is what producers and consumers are made from. Any threads may
/// use one at the same time; their calls wait for each other.
#[derive(Debug)]
pub struct ClientHandle {
    addresses: Vec<String>,
    config: ClientConfig,
    client: Mutex<Client>,
}

impl ClientHandle {
    /// Runs a request; others wait until it is over.
    pub(crate) fn with<T>(
        &self,
        request: impl FnOnce(&mut Client) -> Result<T, pyralog_net::client::ClientError>,
    ) -> Result<T, Failure> {
        let mut client = args::in_turn(&self.client)?;
        Ok(request(&mut client)?)
    }

    /// A client of its own for a producer or consumer, which keeps it.
    pub(crate) fn another(&self) -> Client {
        Client::new(&self.addresses, self.config.clone())
    }
}

/// The addresses in a list with commas.
fn addresses_of(list: &str) -> Result<Vec<String>, Failure> {
    let addresses: Vec<String> =
        list.split(',').map(str::trim).filter(|address| !address.is_empty()).map(str::to_owned).collect();
    if addresses.is_empty() {
        return Err(Failure::argument("no address is given; name at least one node as host:port"));
    }
    let is_address = |address: &&String| {
        address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    match addresses.iter().find(|address| !is_address(address)) {
        Some(address) => Err(Failure::argument(format!("{address:?} is no address; write host:port"))),
        None => Ok(addresses),
    }
}

/// Fills in the defaults. size: sizeof(pyralog_client_config_t).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_client_config_init(config: *mut ClientSettings, size: usize) -> i32 {
    // SAFETY: the caller has a struct of this size there.
    guard(|| unsafe { sized::write(ClientSettings::new(), config, size) })
}

/// A client of the cluster that the nodes at addresses ("host:port,host:port") belong to; one that answers is enough.
/// config may be NULL: defaults. Does not connect yet: pyralog_client_ping() does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_client_new(
    addresses: *const c_char,
    config: *const ClientSettings,
    client: *mut *mut ClientHandle,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (addresses, config, client) = unsafe {
            let client = Out::new(client, "client")?;
            let addresses = addresses_of(args::text(addresses, "addresses")?)?;
            (addresses, sized::read(config, ClientSettings::new())?.config()?, client)
        };
        let made = Mutex::new(Client::new(&addresses, config.clone()));
        client.set(args::into_handle(ClientHandle { addresses, config, client: made }));
        Ok(())
    })
}

/// Makes sure that a node answers; waits up to retry_for_ms for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_client_ping(client: *const ClientHandle) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        let client = unsafe { args::reference(client, "client") }?;
        client.with(|client| client.ping(Place::ANY))
    })
}

/// Frees a client; NULL is fine. Producers and consumers made from it go on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_client_free(client: *mut ClientHandle) {
    // SAFETY: the caller's handle is null or valid, and not used again.
    guard_quietly(|| drop(unsafe { args::from_handle(client) }));
}
