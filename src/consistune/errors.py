"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """Input that cannot be used: shown as one line, `where: what; remedy`, and exit status 2.

    Args:
        what: what is wrong, naming the value that was given.
        where: the file, key or option in which it stands.
        remedy: what to write instead.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        line = f"{where}: {what}" if where else what
        super().__init__(" ".join(f"{line}; {remedy}".split()) if remedy else " ".join(line.split()))
