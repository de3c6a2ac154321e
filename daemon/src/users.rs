//! The names of users, as the system has them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Users whose names an executor remembers.
const USERS_MAX: usize = 65_536;

/// What an executor remembers of them.
#[derive(Debug, Default)]
pub struct Users {
    /// Names of uids, as the system had them when they were first asked for.
    names: RefCell<HashMap<u32, Rc<str>>>,
    /// The one that asked last, who mostly is the one that asks next.
    last: RefCell<Option<(u32, Rc<str>)>>,
}

impl Users {
    /// The name that the system gives a uid; empty where it has none.
    pub fn name(&self, uid: u32) -> Rc<str> {
        if let Some((last, name)) = &*self.last.borrow()
            && *last == uid
        {
            return Rc::clone(name);
        }
        let name = self.look_up(uid);
        *self.last.borrow_mut() = Some((uid, Rc::clone(&name)));
        name
    }

    fn look_up(&self, uid: u32) -> Rc<str> {
        if let Some(name) = self.names.borrow().get(&uid) {
            return Rc::clone(name);
        }
        let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
        let name: Rc<str> = found.map_or_else(String::new, |user| user.name).into();
        let mut names = self.names.borrow_mut();
        if names.len() < USERS_MAX {
            names.insert(uid, Rc::clone(&name));
        }
        name
    }

    /// Forgets the names of users: the system may have others by now.
    pub fn forget(&self) {
        self.names.borrow_mut().clear();
        *self.last.borrow_mut() = None;
    }
}
