"""Files as targets: one module a format, and what they share.

The modules, lower ones first:

    descriptors   a file opened once, read by position
    notes         what xweights knows of an array beyond its bytes, as JSON
    records       an array in a file: its key, dtype, shape and where its bytes are
    items         an array to be written
    atomic        replacing a file: wholly, or not at all
    archives      zip files
    safetensors, npz, ...   the formats: each reads an index of records, and writes items
    checkpoint    load: a file as a target
    saving        save and convert: a target as a file
    editing       edit_file: a file in place, or streamed into another

They may import every room of the core below ``files``; h5py and ml_dtypes inside functions.
"""
